"""The LLaMA-Factory recipe: a yaml whose section `ray` is Ray Train's and whose rest is LLaMA-Factory's."""

import math
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, Field, NonNegativeFloat, PositiveInt, TypeAdapter, ValidationError

from tutorial import TutorialError, first_error, one_line
from tutorial.settings import read_yaml

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's max_lora_rank
SHOWN = ("lora_rank", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "cutoff_len")
POSITIVE = (*SHOWN, "per_device_eval_batch_size", "gradient_accumulation_steps", "logging_steps")
ON_GPU = ("fp16", "pure_bf16", "fp8", "tf32", "enable_liger_kernel", "quantization_bit", "use_unsloth")
EMBEDDINGS = ("embed", "lm_head", "wte", "output_layer")
RAY = "Ray Train runs as the section `ray` says: num_workers, resources_per_worker, env_vars"
REFUSED = {  # why a key must have LLaMA-Factory's default
    "the engines serve plain LoRA adapters only": (
        "finetuning_type use_dora pissa_init additional_target use_llama_pro"
    ),
    "the engines do not have the base model that this adapter would need": (
        "adapter_name_or_path create_new_adapter train_from_scratch rope_scaling mixture_of_depths "
        "resize_vocab add_tokens add_special_tokens new_special_tokens_config"
    ),
    "every worker here holds the whole model (PyTorch's DDP)": (
        "deepspeed fsdp use_mca use_hyper_parallel use_kt"
    ),
    RAY: "ray_num_workers ray_init_kwargs master_addr master_port",
    "the notebook writes the rows anew for each run": "tokenized_path streaming",
    "the batch stage answers the test rows": "do_predict predict_with_generate",
    "the rows are questions with answers (sft)": "stage",
    "RESUME=1 resumes a run": "resume_from_checkpoint",
    "no run resumes without the optimizer's state": "save_only_model",
    "a restarted worker has no earlier checkpoint to return to": "load_best_model_at_end",
    "a run trains all of its steps": "early_stopping_steps",
    "it needs an older version of transformers": "shift_attn",
    "training generates nothing": "infer_backend",
}
ELSEWHERE = {  # why a key is not for the recipe
    RAY: "ray_run_name ray_storage_path placement_strategy resources_per_worker",
    "the setting SEED says it": "seed",
}
WHY, WHY_NOT_HERE = ({k: why for why, keys in d.items() for k in keys.split()} for d in (REFUSED, ELSEWHERE))


class RayArgs(BaseModel, coerce_numbers_to_str=True):
    """The section `ray`: one worker, on a GPU unless the recipe has `use_cpu`."""

    num_workers: PositiveInt = 1
    use_gpu: bool = True
    resources_per_worker: dict[str, NonNegativeFloat] = {}
    max_failures: int = Field(2, ge=-1)
    num_to_keep: PositiveInt = 3
    env_vars: dict[str, str] = {}


def load(path: Path, gpus: float | None = None, shapes: dict | None = None) -> tuple[dict[str, Any], dict]:
    """The recipe as LLaMA-Factory's arguments and Ray Train's, checked whole, with what later cells need.

    Values get the types of LLaMA-Factory's dataclasses (YAML reads `1e-4` as text). `dataset` and
    `eval_dataset` become the notebook's splits. The first step is logged, so that there is a loss.

    Args:
        path: the yaml file.
        gpus: how many the cluster has. If 0, `use_cpu` is filled in.
        shapes: of the base model's weights by name, for a look at `lora_target`; see `gpus.shapes`.

    Raises:
        TutorialError: a key is unknown, or its value is wrong or nothing that this project trains and serves;
            names the file, the key and the value.
    """
    args = read_yaml(path)

    def refuse(key: str, why: str) -> None:
        raise TutorialError(f"{path.name}: {key}={args[key]!r}: {why}")

    section, (kinds, known, hints, templates, trackers) = args.pop("ray", None), _llamafactory()
    for key in args:
        if key in WHY_NOT_HERE:
            refuse(key, f"{WHY_NOT_HERE[key]}; delete the key")
        _check_known(path, key, known, "LLaMA-Factory does not know the key")
        try:
            args[key] = _typed(hints[key], args[key])
        except ValidationError as error:
            refuse(key, error.errors()[0]["msg"][:150])
        if key in WHY and args[key] and args[key] != known[key]:
            refuse(key, f"{WHY[key]}; delete the key")
        if key in POSITIVE and not 0 < args[key] < math.inf:
            refuse(key, "a number above 0 is needed")
    args = {key: known[key] for key in SHOWN} | {"do_train": True, "model_name_or_path": "model"} | args
    args |= {"lora_alpha": args.get("lora_alpha") or 2 * args["lora_rank"]}
    if args["lora_rank"] not in SERVED_RANKS:
        refuse("lora_rank", f"vLLM serves {', '.join(map(str, SERVED_RANKS))}")
    if not args["do_train"]:
        refuse("do_train", "the notebook trains; delete the key")
    if any(name in args.get("lora_target", "") for name in EMBEDDINGS):
        refuse("lora_target", "the engines take no LoRA on embeddings and output layers; leave them out")
    if shapes and "lora_target" in args:
        _check_targets(path, args["lora_target"].replace(" ", "").split(","), shapes)
    if args.get("template"):
        _check_known(path, args["template"], templates, "LLaMA-Factory does not know the template")
    reported = [name.strip() for name in (args.get("report_to") or "none").split(",")]
    args["report_to"] = reported if len(reported) > 1 else reported[0]
    for name in reported:
        if name in ("all", "none") and len(reported) > 1:
            refuse("report_to", f"{name} stands alone; delete it or the others")
        elif name not in ("all", "none"):
            _check_known(path, name, trackers, "report_to: Transformers does not know the tracker")
            try:
                trackers[name]()
            except (RuntimeError, ImportError) as error:
                refuse("report_to", f"{one_line(error)} Or set it to tensorboard or none")
    if "trackio" in reported:  # Transformers would make a Space on the Hugging Face hub for it
        args.setdefault("trackio_space_id", None)
    args |= {"dataset": "train", "logging_first_step": True}
    if args.get("eval_dataset") or not args.get("val_size"):
        args["eval_dataset"] = "val"
    try:
        for kind in kinds:
            kind(**{key: args[key] for key in get_type_hints(kind) if key in args})
    except (ValueError, AssertionError) as error:
        raise TutorialError(f"{path.name}: {one_line(error)}") from None
    ray_args = _ray_args(path, section, args, gpus)
    for key in ON_GPU:
        if args.get(key) and not ray_args["use_gpu"]:
            refuse(key, "it needs a GPU, and training uses CPUs; delete the key")
    return args, ray_args


def longest_row(args: dict[str, Any]) -> int:
    """Tokens of the longest row that is trained whole: LLaMA-Factory cuts longer ones, and leaves out of its
    packs those that would fill one alone (llamafactory.data.processor.supervised)."""
    return args["cutoff_len"] - bool(args.get("packing") or args.get("neat_packing"))


def _ray_args(path: Path, section: Any, args: dict[str, Any], gpus: float | None) -> dict[str, Any]:
    """The section `ray`, filled in, as is `use_cpu` in `args`: both say the same of GPUs."""
    section = {} if section is None else section
    if not isinstance(section, dict):
        raise TutorialError(f"{path.name}: ray={section!r}: a mapping of keys to values is needed")
    for key in section:
        _check_known(path, key, RayArgs.model_fields, "the section `ray` has no key")
    args.setdefault("use_cpu", not section.get("use_gpu", gpus != 0))
    try:
        found = RayArgs(**{"use_gpu": not args["use_cpu"]} | section).model_dump()
    except ValidationError as error:
        raise TutorialError(f"{path.name}: ray.{first_error(error)}") from None
    resources = {"CPU": 1, "GPU": int(found["use_gpu"])} | found["resources_per_worker"]
    if not bool(resources["GPU"]) == found["use_gpu"] != args["use_cpu"]:
        raise TutorialError(f"{path.name}: use_cpu, ray.use_gpu and GPU in ray.resources_per_worker disagree")
    return found | {"resources_per_worker": {kind: each for kind, each in resources.items() if each}}


def _typed(hint: Any, value: Any) -> Any:
    """The value as the type that a dataclass names. Raises ValidationError."""
    kinds = get_args(hint) or (hint,)
    if isinstance(value, bool) and bool not in kinds:  # YAML reads a bare `no` as false
        value = "yes" if value else "no"
    if isinstance(value, list) and str in kinds:
        value = ",".join(map(str, value))
    enum = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)), None)
    found = TypeAdapter(enum or hint, config={"coerce_numbers_to_str": True}).validate_python(value)
    return found.value if isinstance(found, Enum) else found


def _check_targets(path: Path, targets: list[str], shapes: dict[str, list[int]]) -> None:
    """PEFT trains those of the layers that the base model has, and says nothing of the others."""
    layers = [name.split(".")[:-1] for name, shape in shapes.items() if len(shape) == 2]
    known = {".".join(layer[start:]) for layer in layers for start in range(len(layer))}
    for target in targets if targets != ["all"] else ():
        _check_known(path, target, known, "lora_target: the base model has no layer")


def _check_known(path: Path, key: str, known: Iterable[str], problem: str) -> None:
    if key not in known:
        near = "".join(f"; did you mean {each!r}?" for each in get_close_matches(key, list(known), n=1))
        raise TutorialError(f"{path.name}: {problem} {key!r}{near}")


@cache
def _llamafactory() -> tuple[list[type], dict[str, Any], dict[str, Any], Iterable[str], dict[str, type]]:
    """LLaMA-Factory's dataclasses that check themselves, defaults and types of all keys, the templates, and
    the callbacks of Transformers' trackers."""
    from llamafactory import hparams  # imported here: it takes seconds
    from llamafactory.data.template import TEMPLATES
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    kinds = [hparams.DataArguments, hparams.FinetuningArguments, hparams.GeneratingArguments]
    kinds.append(hparams.ModelArguments)
    every = [*kinds, hparams.TrainingArguments]
    known = {field.name: field.default for kind in every for field in fields(kind) if field.init}
    hints = {key: hint for kind in every for key, hint in get_type_hints(kind).items()}
    return kinds, known, hints, TEMPLATES, INTEGRATION_TO_CALLBACK
