"""Training and inference must send the same prompt; nothing else would say so if they did not."""

import json

from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from transformers import AutoTokenizer

from tests.conftest import ROOT
from tutorial import data, recipe, sample


def training_ids(model_path, row):
    """The token ids of prompt and answer as LLaMA-Factory makes them for a row of our columns."""
    args, _ = recipe.load(ROOT / "lora_sft_ray_cpu.yaml")
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=args.get("template")))
    turns = [{"role": "user", "content": row["input"]}, {"role": "assistant", "content": row["output"]}]
    return template.encode_oneturn(tokenizer, turns, system=row["instruction"])


def test_the_same_token_ids(model_path):
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    for row in sample.rows()["test"][:20]:
        prompt, answer = training_ids(model_path, row)
        asked = tokenizer.apply_chat_template(
            data.messages(row), add_generation_prompt=True, return_dict=False
        )
        assert prompt == asked
        assert tokenizer.decode(answer).strip() == row["output"] + tokenizer.eos_token


def test_the_columns_that_llamafactory_is_told(tmp_path):
    data.write({"train": sample.rows()["train"][:1]}, tmp_path)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert info["train"]["columns"] == {"system": "instruction", "prompt": "input", "response": "output"}
