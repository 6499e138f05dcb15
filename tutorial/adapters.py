"""A LoRA adapter as it is published: two files, neither a pickle, and a manifest that says what they are."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector, FileType
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from tutorial import TutorialError, one_line, results
from tutorial.storage import Storage, file_system

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"
FILES = (WEIGHTS, CONFIG)


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
    """Check an adapter and copy it, with its manifest, to `adapters/<name>` of the run.

    Args:
        store: the run's storage.
        folder: holds the two files, as PEFT writes them.
        name: what clients ask for, after the base model's name and a colon.
        base: the base model that it will be served on, a name or a folder.
        max_rank: `max_lora_rank` of the engines.
        recipe: how it was trained, LLaMA-Factory's arguments.

    Raises:
        TutorialError: the engines do not take its rank, its weights are not of the rank that its
            configuration names, a file is missing, or the storage does not take it.
    """
    for file in FILES:
        if not Path(folder, file).is_file():
            raise TutorialError(f"{Path(folder).name}: holds no {file}, so no adapter of PEFT's")
    config = json.loads(Path(folder, CONFIG).read_text(encoding="utf-8"))
    _check(config, Path(folder, WEIGHTS), max_rank)
    config["base_model_name_or_path"] = Path(base).name  # and not a path of the machine that trained it
    with tempfile.TemporaryDirectory() as made:  # a checkpoint's own folder is not to be written to
        Path(made, CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        Path(made, WEIGHTS).write_bytes(Path(folder, WEIGHTS).read_bytes())
        manifest = Manifest(
            base_model=Path(base).name,
            rank=config["r"],
            recipe=recipe,
            versions=results.versions(),
            files={file: _measure(Path(made, file).read_bytes()) for file in FILES},
        )
        Path(made, MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
        # The configuration last: Ray Serve takes an adapter to be there once it has that.
        store.publish(made, f"adapters/{name}", [MANIFEST, *FILES])
    return manifest


def verify(uri: str, base: str) -> Manifest:
    """Compare an adapter in the storage with its manifest.

    Args:
        uri: its folder.
        base: the base model's name or folder.

    Raises:
        TutorialError: a file is missing, is not the one that was published, or is for another base model.
    """
    files, path = file_system(uri)

    def read(file: str) -> bytes:
        if not files.get_file_info(f"{path}/{file}").is_file:
            raise TutorialError(f"{uri}: {file} is missing; publish the adapter again")
        with files.open_input_stream(f"{path}/{file}") as stream:
            return stream.read()

    try:
        manifest = Manifest.model_validate_json(read(MANIFEST))
    except ValidationError as error:
        raise TutorialError(f"{uri}/{MANIFEST}: {one_line(error)}; publish the adapter again") from None
    for file in FILES:
        if manifest.files.get(file) != _measure(read(file)):
            raise TutorialError(
                f"{uri}/{file}: by its SHA-256 not the file that was published; publish it again"
            )
    if manifest.base_model != Path(base).name:
        raise TutorialError(
            f"{uri}: made for {manifest.base_model}, not for {Path(base).name}; set MODEL as it was"
        )
    return manifest


def verify_all(uri: str, base: str) -> dict[str, Manifest]:
    """`verify` each adapter below a folder, if there is one: the manifests by the adapters' names.

    One that has no configuration is not there yet: it is published last, and Ray Serve waits for it too.
    """
    files, path = file_system(uri)
    found = files.get_file_info(FileSelector(path, allow_not_found=True))
    folders = [each for each in found if each.type == FileType.Directory]
    return {
        each.base_name: verify(f"{uri}/{each.base_name}", base)
        for each in folders
        if files.get_file_info(f"{each.path}/{CONFIG}").is_file
    }


def _check(config: dict, weights: Path, max_rank: int) -> None:
    rank = config["r"]
    if rank > max_rank:
        raise TutorialError(
            f"{CONFIG}: r={rank}, the engines take ranks up to {max_rank}; train with a lower lora_rank, or "
            "raise their max_lora_rank"
        )
    try:
        with safe_open(weights, "np") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no mapping)
                axis = 0 if ".lora_A." in key else 1 if ".lora_B." in key else None
                if axis is None:
                    raise TutorialError(f"{WEIGHTS}: {key} is no matrix of LoRA's, and vLLM does not take it")
                if (found := tensors.get_slice(key).get_shape()[axis]) != rank:
                    raise TutorialError(f"{WEIGHTS}: {key} has rank {found}, {CONFIG} says r={rank}")
    except SafetensorError as error:
        raise TutorialError(f"{WEIGHTS}: not a file of safetensors ({one_line(error)})") from None


def _measure(content: bytes) -> File:
    return File(size=len(content), sha256=hashlib.sha256(content).hexdigest())
