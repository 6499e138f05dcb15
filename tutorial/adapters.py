"""A LoRA adapter as it is published: two files, neither a pickle, and a manifest that says what they are."""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, FiniteFloat, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open

from tutorial import TutorialError, first_error, one_line, stage
from tutorial.files import Place, failing
from tutorial.model import model_id
from tutorial.storage import Storage

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"
FILES = (WEIGHTS, CONFIG)
RECIPE = """lora_rank lora_alpha learning_rate num_train_epochs per_device_train_batch_size
    gradient_accumulation_steps cutoff_len packing neat_packing quantization_bit seed""".split()
TO_EXPORT = ("adapters", "questions", "answers", "recipe", "results")  # what tutorial.export needs of a run
# Keys of PEFT's that do not change what the two matrices of a layer mean.
HARMLESS = """auto_mapping base_model_name_or_path corda_config eva_config exclude_modules fan_in_fan_out
    inference_mode layers_pattern layers_to_transform loftq_config lora_dropout megatron_core peft_version
    qalora_group_size revision task_type""".split()


class Config(BaseModel, extra="allow"):
    """PEFT's configuration of an adapter that vLLM serves as it was trained."""

    peft_type: Literal["LORA"] = "LORA"
    r: PositiveInt
    lora_alpha: FiniteFloat
    target_modules: list[str] | str
    use_rslora: bool = False
    bias: Literal["none"] = "none"
    # The others (PiSSA, OLoRA, CorDA, LoftQ) change the weights of the base model too.
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "eva"] = True


class File(BaseModel):
    """Size in bytes, and SHA-256."""

    size: int
    sha256: str


class Manifest(BaseModel):
    """What is published beside an adapter's files."""

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
        recipe: how it was trained, LLaMA-Factory's arguments; the manifest has some of them, and no path.

    Raises:
        TutorialError: a file is missing or broken, vLLM would serve something else than what was trained, or
            the storage does not take it.
    """
    if missing := [file for file in FILES if not Path(folder, file).is_file()]:
        raise TutorialError(f"{Path(folder).name}: {missing[0]} is missing, so this is no adapter of PEFT's")
    rank = _check(Path(folder, CONFIG).read_bytes(), Path(folder, WEIGHTS), max_rank)
    config = json.loads(Path(folder, CONFIG).read_bytes())
    config["base_model_name_or_path"] = Path(base).name  # and not a path of the machine that trained it
    with tempfile.TemporaryDirectory() as made:  # a checkpoint's own folder is not to be written to
        Path(made, CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        Path(made, WEIGHTS).symlink_to(Path(folder, WEIGHTS).absolute())
        manifest = Manifest(
            base_model=model_id(base),
            rank=rank,
            recipe={key: recipe[key] for key in RECIPE if key in recipe},
            versions=stage.versions(),
            files=_measure(Place.of(made)),
        )
        Path(made, MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
        # The configuration last: Ray Serve takes an adapter to be there once it has that.
        store.publish(made, f"adapters/{name}", [MANIFEST, *FILES])
    return manifest


def verify(place: Place, base: str) -> Manifest:
    """Compare an adapter in a storage with its manifest.

    Args:
        place: its folder.
        base: the base model's name or folder.

    Raises:
        TutorialError: a file is missing, is not the one that was published, or is for another base model.
    """
    there = place.listing()
    if missing := [file for file in (MANIFEST, *FILES) if file not in there]:
        raise TutorialError(f"{place}: {missing[0]} is missing; publish the adapter again")
    try:
        manifest = Manifest.model_validate_json((place / MANIFEST).read())
    except ValidationError as error:
        raise TutorialError(f"{place}/{MANIFEST}: {first_error(error)}; publish the adapter again") from None
    found = _measure(place)
    if other := [file for file in FILES if manifest.files.get(file) != found[file]]:
        changed = "by its SHA-256 not the file that was published; publish it again"
        raise TutorialError(f"{place}/{other[0]}: {changed}")
    if manifest.base_model != (served := model_id(base)):
        raise TutorialError(f"{place}: made for {manifest.base_model}, not for {served}; set MODEL as it was")
    return manifest


def listed(place: Place) -> list[str]:
    """The names of the adapters below a folder, if there is one.

    An adapter without its configuration is still being published: Ray Serve waits for that file too.
    """
    names = [file.removesuffix(f"/{CONFIG}") for file in place.listing() if file.endswith(f"/{CONFIG}")]
    return sorted(name for name in names if "/" not in name)


def verify_all(place: Place, base: str) -> dict[str, Manifest]:
    """`verify` each adapter below a folder: the manifests by the adapters' names."""
    with failing(f"{place}: the adapters cannot be read"):
        return {name: verify(place / name, base) for name in listed(place)}


def keep(store: Storage) -> Place | None:
    """If the storage ends with the run: copy what an export needs of it to out/. Returns where, else None."""
    if not (store.server and store.root.scheme):
        return None
    kept = Place.of(store.local) / store.run_name
    with failing(f"{kept}: the run cannot be kept"):
        for name in TO_EXPORT:
            if (store.place / name).exists():
                (store.place / name).copy_to(kept / name)
    return kept


def _check(config: bytes, weights: Path, max_rank: int) -> int:
    """The adapter's rank; TutorialError if vLLM cannot serve the adapter as it was trained."""
    try:
        checked = Config.model_validate_json(config)
    except ValidationError as error:
        raise TutorialError(f"{CONFIG}: {first_error(error)}; vLLM serves plain LoRA alone") from None
    for key, value in checked.model_extra.items():
        if value and key not in HARMLESS:
            raise TutorialError(f"{CONFIG}: {key}={value!r}: vLLM would leave it out; train without it")
    if checked.r > max_rank:
        hint = "train with a lower lora_rank, or raise their max_lora_rank"
        raise TutorialError(f"{CONFIG}: r={checked.r}, the engines take ranks up to {max_rank}; {hint}")
    try:
        with safe_open(weights, "np") as tensors:
            if not tensors.keys():
                raise TutorialError(f"{WEIGHTS}: holds no matrices")
            for key in tensors.keys():  # noqa: SIM118 (no mapping)
                axis = {".lora_A.weight": 0, ".lora_B.weight": 1}.get(key[-len(".lora_A.weight") :])
                if axis is None:
                    raise TutorialError(f"{WEIGHTS}: {key} is no matrix of LoRA's, and vLLM does not take it")
                if (found := tensors.get_slice(key).get_shape()[axis]) != checked.r:
                    raise TutorialError(f"{WEIGHTS}: {key} has rank {found}, {CONFIG} says r={checked.r}")
    except SafetensorError as error:
        raise TutorialError(f"{WEIGHTS}: not a file of safetensors ({one_line(error)})") from None
    return checked.r


def _measure(place: Place) -> dict[str, File]:
    sizes = place.listing()
    return {file: File(size=sizes[file], sha256=(place / file).sha256()) for file in FILES}
