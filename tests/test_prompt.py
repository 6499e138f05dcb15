"""Training and inference must send the same prompt; nothing else would say so if they did not."""

import json

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from transformers import AutoTokenizer

from tests.conftest import ROOT
from tutorial import data, recipe, sample


def training_rows(model_path, rows, folder):
    """What LLaMA-Factory trains on: the recipe and the files that the notebook gives it, its own loading."""
    args, _ = recipe.load(ROOT / "lora_sft_ray_cpu.yaml")
    data.write({"train": rows, "val": rows[:1]}, folder)
    args |= {"model_name_or_path": str(model_path), "dataset_dir": str(folder), "output_dir": f"{folder}/out"}
    model_args, data_args, training_args, _, _ = get_train_args(args)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    return get_dataset(template, model_args, data_args, training_args, stage="sft", tokenizer=tokenizer)


def test_the_same_token_ids(model_path, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    rows = sample.rows()["test"][:20]
    trained = training_rows(model_path, rows, tmp_path)["train_dataset"]
    assert len(trained) == len(rows)
    for row, example in zip(rows, trained, strict=True):
        asked = tokenizer.apply_chat_template(
            data.messages(row), add_generation_prompt=True, return_dict=False
        )
        answer = example["input_ids"][len(asked) :]
        assert example["input_ids"][: len(asked)] == asked
        assert tokenizer.decode(answer).strip() == row["output"] + tokenizer.eos_token
        assert example["labels"] == [-100] * len(asked) + answer  # the loss is on the answer alone


def test_the_columns_that_llamafactory_is_told(tmp_path):
    data.write({"train": sample.rows()["train"][:1]}, tmp_path)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert info["train"]["columns"] == {"system": "instruction", "prompt": "input", "response": "output"}
