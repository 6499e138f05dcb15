"""An adapter merged into its base model: the merge, whether it answers as the two did, and its model card."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tutorial import TutorialError, model
from tutorial.prompt import Chat

AT_ONCE = 16  # rows that are answered together
CARD = Path(__file__).with_name("card.md.j2")
# What the folder of a model does not say: where it comes from, and its licence.
KNOWN = {model.PACKAGED: {"base_model": f"HuggingFaceTB/{model.PACKAGED}", "license": "apache-2.0"}}


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

    Rows have `instruction`, `input`, `output`. The source is `gguf_file`, if that is what the folder holds.
    TutorialError if its chat template and tokenizer do not ask what the batch stage asked.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, pipeline

    # transformers 5.5 takes every GGUF of Llama's architecture for one with SentencePiece's tokens.
    load = (PreTrainedTokenizerFast if source else AutoTokenizer).from_pretrained
    tokenizer, texts = load(folder, padding_side="left", **source), []
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for turns in map(chat.messages, rows):
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        if text != (expected := chat.template.render(turns)):
            raise TutorialError(f"{folder.name}: its chat template asks {text!r}, not {expected!r}")
        ids, known = (
            each(text, add_special_tokens=False)["input_ids"] for each in (tokenizer, chat.template.tokenizer)
        )
        if ids != known:
            raise TutorialError(
                f"{folder.name}: its tokenizer makes {ids} of {text!r}, the base model's {known}"
            )
        texts.append(text)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **source)
    ends = {"eos_token_id": sorted(chat.template.stops), "pad_token_id": tokenizer.pad_token_id}
    ask = pipeline("text-generation", loaded, tokenizer=tokenizer, do_sample=False, **ends)
    shown = {"return_full_text": False, "clean_up_tokenization_spaces": False}
    answers = ask(texts, batch_size=AT_ONCE, add_special_tokens=False, max_new_tokens=max_tokens, **shown)
    return [each[0]["generated_text"] for each in answers]


def equal(one: list[str], other: list[str]) -> str:
    """How many of two lists' texts are equal, as `58 of 60`."""
    return f"{sum(first == second for first, second in zip(one, other, strict=True))} of {len(one)}"


def write_card(folder: Path, run: Any, check: dict[str, Any]) -> None:
    """Write README.md, the model card of an `export.Export`, into the merged model's folder.

    The check says how many answers are `equal` to the adapter's, `right`, and `adapter_right`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    hub, own = run.base.partition("@")[0], run.base_folder / "README.md"
    about = ModelCard.load(own).data.to_dict() if own.is_file() else {}
    about |= {"base_model": None if Path(hub).exists() else hub} | KNOWN.get(run.base, {})
    data = ModelCardData(
        base_model=about["base_model"],
        license=about.get("license"),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["llama-factory", "lora"],
    )
    ModelCard.from_template(
        data,
        template_path=str(CARD),
        about=about,
        base=run.manifest.base_model,
        revision=model.revision(run.base_folder),
        check=check,
        messages=json.dumps(run.chat.messages(_example(run.rows)), indent=4, ensure_ascii=False),
        recipe=yaml.safe_dump(run.manifest.recipe, sort_keys=False),
        rows=_list("split", "rows", run.results["data"]["used"]),
        run=run,
        scores=pd.DataFrame(run.results["batch"]["scores"]).map(_score).T.to_markdown(disable_numparse=True),
        versions=_list("package", "version", run.manifest.versions),
    ).save(folder / "README.md")


def _example(rows: pd.DataFrame) -> dict[str, str]:
    """A row to show how the model is asked. Test rows may be private: it has the instruction of all alone."""
    common = rows["instruction"].iloc[0] if rows["instruction"].nunique() == 1 else ""
    return {"instruction": common, "input": "..."}


def _list(key: str, value: str, found: dict[str, Any]) -> str:
    return pd.DataFrame(found.items(), columns=[key, value]).to_markdown(index=False)


def _score(score: dict[str, float | None]) -> str:
    low, high = score.get("low"), score.get("high")
    return f"{score['value']:.3f}" + (f" ({low:.2f} to {high:.2f})" if low is not None else "")
