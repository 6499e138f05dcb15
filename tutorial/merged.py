"""An adapter merged into its base model: a model of its own, and whether it answers as the two did."""

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet

from tutorial import TutorialError
from tutorial.files import Place
from tutorial.prompt import Chat

AT_ONCE = 16  # rows that are answered together


def answered(place: Place, name: str) -> pd.DataFrame:
    """The test rows that the batch stage asked an adapter, zero-shot and not guided, with its answers.

    Returns:
        One row for each, without those that failed: `instruction`, `input`, `output` and `answer`, texts.

    Raises:
        TutorialError: the batch stage has no such answers.
    """
    tables = (place / "questions", place / "answers")
    if not all(table.exists() for table in tables):
        raise TutorialError(f"{place} holds no answers to compare with; RESUME=1 resumes the run")
    read = (pyarrow.parquet.read_table(table.path, filesystem=table.files) for table in tables)
    asked, answers = (table.to_pandas().set_index("id") for table in read)
    asked = asked[(asked["model"] == name) & ~asked["few_shot"] & ~asked["guided"]]
    both = asked.join(answers.loc[answers["error"] == "", ["answer"]], how="inner")
    if both.empty:
        raise TutorialError(f"{place} holds no answers of {name} to compare with; RESUME=1 resumes the run")
    return both.sort_index()


def merge(base: Path, adapter: Path, chat: Chat, target: Path) -> None:
    """Write the merged model, as LLaMA-Factory's export does: safetensors in the base model's type.

    With it go the base model's tokenizer and, as its defaults, all that the batch stage and the endpoint are
    told beside it: the chat template in use, its options, and the tokens that end an answer.
    """
    from llamafactory.train.tuner import export_model
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    args = {"model_name_or_path": str(base), "adapter_name_or_path": str(adapter), "finetuning_type": "lora"}
    export_model(args | {"template": chat.recipe_args.get("template"), "export_dir": str(target)})
    (target / "Modelfile").unlink()  # that of LLaMA-Factory's template
    template = chat.template
    options = "".join(
        f"{{%- set {key} = {key} if {key} is defined else {json.dumps(value)} -%}}"
        for key, value in template.options.items()
    )
    template.tokenizer.chat_template = options + template.text
    template.tokenizer.save_pretrained(target)
    ends = sorted(template.stops)
    GenerationConfig(eos_token_id=ends, pad_token_id=ends[0], do_sample=False).save_pretrained(target)


def answer(folder: Path, chat: Chat, rows: list[dict], max_tokens: int, **source: str) -> list[str]:
    """A model's answers by Transformers, greedy, with the tokenizer and chat template of its own folder.

    Args:
        folder: the model's.
        chat: how the rows become messages.
        rows: `instruction`, `input` and `output`.
        max_tokens: of an answer.
        source: `gguf_file`, if that is what the folder holds.

    Raises:
        TutorialError: its chat template and tokenizer do not ask what the batch stage asked.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    # transformers 5.5 takes every GGUF of Llama's architecture for one with SentencePiece's tokens.
    load = (PreTrainedTokenizerFast if source else AutoTokenizer).from_pretrained
    tokenizer = load(folder, padding_side="left", **source)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    conversations = [chat.messages(row) for row in rows]
    options = {"tokenize": False, "add_generation_prompt": True}
    texts = [tokenizer.apply_chat_template(turns, **options) for turns in conversations]
    for text, turns in zip(texts, conversations, strict=True):
        if text != (expected := chat.template.render(turns)):
            raise TutorialError(f"{folder.name}: its chat template asks {text!r}, not {expected!r}")
        ids, known = (
            each(text, add_special_tokens=False)["input_ids"] for each in (tokenizer, chat.template.tokenizer)
        )
        if ids != known:
            raise TutorialError(
                f"{folder.name}: its tokenizer makes {ids} of {text!r}, the base model's {known}"
            )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **source).to(device).eval()
    found = []
    for start in range(0, len(texts), AT_ONCE):
        batch = tokenizer(
            texts[start : start + AT_ONCE], add_special_tokens=False, padding=True, return_tensors="pt"
        ).to(device)
        options = {"eos_token_id": sorted(chat.template.stops), "pad_token_id": tokenizer.pad_token_id}
        with torch.inference_mode():
            said = loaded.generate(
                batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=False,
                max_new_tokens=max_tokens,
                **options,
            )
        found += tokenizer.batch_decode(said[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def equal(one: list[str], other: list[str]) -> str:
    """How many of two lists' texts are equal, as `58 of 60`."""
    return f"{sum(first == second for first, second in zip(one, other, strict=True))} of {len(one)}"
