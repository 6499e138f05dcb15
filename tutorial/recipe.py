"""The LLaMA-Factory recipe: a yaml whose `ray` section is Ray Train's and whose rest is LLaMA-Factory's."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from tutorial import TutorialError
from tutorial.settings import read_yaml

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's max_lora_rank
RAY_KEYS = {"num_workers", "use_gpu", "resources_per_worker", "max_failures", "num_to_keep", "env_vars"}


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe as LLaMA-Factory's arguments and Ray Train's section.

    Raises:
        TutorialError: the file is no yaml, or holds a key that neither of them knows.
    """
    try:
        args = read_yaml(path)
    except OSError as error:
        raise TutorialError(f"{path.name}: cannot be read ({error.strerror})") from None
    ray_section = args.pop("ray", None) or {}
    for key in ray_section:
        if key not in RAY_KEYS:
            known = ", ".join(sorted(RAY_KEYS))
            raise TutorialError(f"{path.name}: unknown key {key!r} in `ray`; known: {known}")
    for key in sorted(RAY_KEYS - set(ray_section)):
        raise TutorialError(f"{path.name}: the key {key!r} is missing in `ray`")
    if args.get("lora_rank") not in SERVED_RANKS:
        ranks = ", ".join(map(str, SERVED_RANKS))
        raise TutorialError(f"{path.name}: lora_rank={args.get('lora_rank')}: vLLM serves {ranks}")
    if "cutoff_len" not in args:
        raise TutorialError(f"{path.name}: the key 'cutoff_len' is missing")
    known = _llamafactory_keys()
    for key in args:
        if key not in known:
            raise TutorialError(f"{path.name}: LLaMA-Factory does not know the key {key!r}")
    return args, ray_section


def longest_row(args: dict[str, Any]) -> int:
    """Tokens of the longest row that is trained whole: LLaMA-Factory cuts longer ones, and leaves out of its
    packs those that would fill one alone (llamafactory.data.processor.supervised)."""
    return args["cutoff_len"] - bool(args.get("packing"))


def _llamafactory_keys() -> set[str]:
    # Imported here: LLaMA-Factory brings torch and transformers, and takes seconds.
    from llamafactory.hparams import (
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
        ModelArguments,
        TrainingArguments,
    )

    parts = (
        ModelArguments,
        DataArguments,
        TrainingArguments,
        FinetuningArguments,
        GeneratingArguments,
    )
    return {f.name for part in parts for f in fields(part)}
