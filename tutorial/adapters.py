"""A LoRA adapter as it is published: two files, neither a pickle, and a manifest that says what they are."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from safetensors import safe_open

from tutorial import TutorialError, results
from tutorial.storage import Storage

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"
FILES = [CONFIG, WEIGHTS]


class File(BaseModel):
    """Size in bytes, and SHA-256."""

    size: int
    sha256: str


class Manifest(BaseModel):
    """What stands beside an adapter's files in the storage."""

    base_model: str
    rank: int
    recipe: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, File]


def publish(
    store: Storage, folder: str | Path, name: str, *, base: str, max_rank: int, recipe: dict
) -> Manifest:
    """Check an adapter and copy it to `adapters/<name>` of the run, its manifest last.

    Args:
        store: the run's storage.
        folder: holds the two files, as PEFT writes them.
        name: what clients ask for, after the base model's name and a colon.
        base: the base model that it will be served on, a name or a folder.
        max_rank: `max_lora_rank` of the engines.
        recipe: how it was trained, LLaMA-Factory's arguments.

    Raises:
        TutorialError: the engines do not take its rank, its weights are not of the rank that its
            configuration names, or the storage does not take it.
    """
    folder, base = Path(folder), Path(base).name
    rank = _check(folder, max_rank)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base  # and not a path of the machine that trained it
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    files = {file: File(**_measure((folder / file).read_bytes())) for file in FILES}
    manifest = Manifest(base_model=base, rank=rank, recipe=recipe, versions=results.versions(), files=files)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    store.publish(folder, f"adapters/{name}", [*FILES, MANIFEST])
    return manifest


def verify(store: Storage, name: str, base: str) -> Manifest:
    """Read an adapter of the run back, and compare it with its manifest.

    Raises:
        TutorialError: a file is missing, is not the one that was published, or is for another base model.
    """
    at = f"adapters/{name}"
    try:
        manifest = Manifest.model_validate_json(store.read(f"{at}/{MANIFEST}"))
        found = {file: _measure(store.read(f"{at}/{file}")) for file in FILES}
    except FileNotFoundError as error:
        raise TutorialError(
            f"{store.uri(at)}: {Path(str(error)).name} is missing; publish the adapter again"
        ) from None
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise TutorialError(f"{store.uri(at)}/{MANIFEST}: {reason}; publish the adapter again") from None
    for file, expected in manifest.files.items():
        if found.get(file) != expected.model_dump():
            raise TutorialError(
                f"{store.uri(at)}/{file}: by its SHA-256 not the file that was published; publish it again"
            )
    if manifest.base_model != Path(base).name:
        raise TutorialError(
            f"{store.uri(at)}: made for {manifest.base_model}, not for {Path(base).name}; set MODEL as it was"
        )
    return manifest


def _check(folder: Path, max_rank: int) -> int:
    """The adapter's rank."""
    rank = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["r"]
    if rank > max_rank:
        raise TutorialError(
            f"{CONFIG}: r={rank}, the engines take ranks up to {max_rank}; train with a lower lora_rank, or "
            "raise their max_lora_rank"
        )
    with safe_open(folder / WEIGHTS, "np") as weights:
        for key in weights.keys():  # noqa: SIM118 (no mapping)
            found = weights.get_slice(key).get_shape()[0 if "lora_A" in key else 1]
            if found != rank:
                raise TutorialError(f"{WEIGHTS}: {key} has rank {found}, {CONFIG} says r={rank}")
    return rank


def _measure(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
