"""The memory of NVIDIA GPUs: what is free, and about how much a recipe and an engine need.

The estimates are from the base model's shapes. tests/test_gpus.py compares them with what was measured.
"""

import math
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from tutorial import TutorialError
from tutorial.recipe import load
from tutorial.settings import ROOT

GIB = 2**30
SURE = 0.9  # of an estimate: less than that is refused
CUDA_GIB = 1.3  # what CUDA itself takes of a GPU, per process
KEPT = 2.2  # bytes that training keeps for each input and output of a linear layer, by token
NEAT = 1.1  # the same with neat_packing, which needs a mask
LOGITS = 2 * 4  # bytes by token and word of the vocabulary: two copies in float32
BYTES = {None: 2.0, "fp8": 1.0, "bitsandbytes": 0.53}  # of a weight in a linear layer; the rest has 2


class Gpu(NamedTuple):
    """Memory of a GPU in GiB."""

    total: float
    free: float


class Shape(NamedTuple):
    """What the estimates need of a model.

    Attributes:
        linear: weights in linear layers, without the output layer.
        others: all other weights.
        sides: inputs plus outputs of the linear layers.
        hidden: the width of a token's state.
        layers: how often it is kept with gradient checkpointing.
        vocabulary: words.
        cached: keys and values by token.
    """

    linear: int
    others: int
    sides: int
    hidden: int
    layers: int
    vocabulary: int
    cached: int


def visible() -> list[Gpu]:
    """The GPUs that this process may use; [] if there is no NVIDIA driver."""
    if not find_spec("pynvml"):
        return []
    import pynvml as nvml

    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(nvml.nvmlDeviceGetCount()))))
    by = {True: lambda n: nvml.nvmlDeviceGetHandleByIndex(int(n)), False: nvml.nvmlDeviceGetHandleByUUID}
    found = [nvml.nvmlDeviceGetMemoryInfo(by[name.isdigit()](name)) for name in names.split(",") if name]
    nvml.nvmlShutdown()
    return [Gpu(memory.total / GIB, memory.free / GIB) for memory in found]


def shapes(model: Path) -> dict[str, list[int]]:
    """The shape of each weight of a model, from the heads of its safetensors files; no weight is read."""
    found = {}
    for file in model.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            found |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    return found


def shape(model: Path) -> Shape:
    """What the estimates need of a model, from its `shapes`."""
    found = shapes(model)
    inner = (name for name, each in found.items() if len(each) == 2 and not re.search("embed|head", name))
    linear = {name: found[name] for name in inner}
    words = next(each for name, each in found.items() if "embed_tokens" in name)
    keys = [each[0] for name, each in linear.items() if "k_proj" in name or "v_proj" in name]
    sizes = {name: math.prod(each) for name, each in found.items()}
    return Shape(
        linear=sum(sizes[name] for name in linear),
        others=sum(size for name, size in sizes.items() if name not in linear),
        sides=sum(map(sum, linear.values())),
        hidden=words[1],
        layers=len(keys) // 2 or 1,
        vocabulary=words[0],
        cached=sum(keys),
    )


def training_gib(model: Shape, args: dict[str, Any], row_tokens: int) -> float:
    """About what training takes of each GPU, CUDA's own part included.

    Args:
        model: the base model's.
        args: of the recipe, as `recipe.load` returns them.
        row_tokens: of the longest row.
    """
    packed = args.get("packing") or args.get("neat_packing")
    length = args["cutoff_len"] if packed else min(args["cutoff_len"], row_tokens)
    tokens, evaluated = (length * args.get(f"per_device_{each}_batch_size", 8) for each in ("train", "eval"))
    kept = KEPT * model.sides * (NEAT if args.get("neat_packing") else 1)
    if not args.get("disable_gradient_checkpointing"):  # one layer's at a time, and the states between them
        kept = kept / model.layers + 2 * model.hidden * model.layers
    if not args.get("enable_liger_kernel"):
        kept += (LOGITS + 2) * model.vocabulary + 0.4 * KEPT * model.sides
    each = BYTES["bitsandbytes"] if args.get("quantization_bit") == 4 else 2.0
    weights = each * model.linear + 2 * model.others
    adapter = 16 * args["lora_rank"] * model.sides  # 32 bits each: weight, gradient, two of the optimizer's
    slack = 0.4 if packed else 2.0  # rows of many lengths leave gaps
    most = max(tokens * kept, evaluated * LOGITS * model.vocabulary)
    return CUDA_GIB + slack + (weights + adapter + most) / GIB


def engine_gib(model: Shape, engine: dict[str, Any], rank: int) -> float:
    """About what a vLLM engine takes of a GPU at least: with the cache of one request of `max_model_len`."""
    weights = BYTES.get(engine.get("quantization"), 2.0) * model.linear + 2 * model.others
    adapters = 2 * rank * model.sides * (engine.get("max_loras", 1) + 1)
    step = engine.get("max_num_batched_tokens", 8192) * 4 * model.sides / model.layers
    logits = engine.get("max_num_seqs", 256) * LOGITS * model.vocabulary
    cache = 2 * model.cached * engine.get("max_model_len", 4096)
    return CUDA_GIB + 0.5 + (weights + adapters + step + logits + cache) / GIB


def lacks(model: Path, args: dict[str, Any], gpu: Gpu, row_tokens: int = 0) -> str:
    """Why a GPU is too small to train a model with a recipe, in GiB and with what fits; "" if it is not."""
    found, wanted = shape(model), f"training {model.name} needs about"
    needed = training_gib(found, args, row_tokens)
    if SURE * needed <= gpu.free:
        return ""
    fits = []
    for path in sorted(ROOT.glob("lora_sft_ray*.yaml")):
        other = load(path)[0]
        if not other["use_cpu"] and (less := training_gib(found, other, row_tokens)) <= gpu.free:
            fits.append(f"RECIPE={path.name} (about {less:.1f} GiB)")
    advice = f"set {' or '.join(fits)}" if fits else "set MODEL to a smaller one, or take a larger GPU"
    return f"{wanted} {needed:.1f} GiB of a GPU, and {gpu.free:.1f} of {gpu.total:.1f} GiB are free; {advice}"


def engine_lacks(model: Path, engine: dict[str, Any], gpu: Gpu, rank: int) -> str:
    """Why a GPU is too small for an engine; "" if it is not."""
    found, share = shape(model), engine.get("gpu_memory_utilization", 0.9)
    allowed, needed = share * gpu.total, engine_gib(found, engine, rank)
    said = f"gpu_memory_utilization {share:g} is {allowed:.1f} of {gpu.total:.1f} GiB"
    if SURE * needed <= allowed <= gpu.free:
        return ""
    if SURE * needed <= allowed:
        return f"{said}, and {gpu.free:.1f} GiB are free; end what uses the GPU, or lower it in the profile"
    fits = [
        f"quantization: {kind} (about {less:.1f} GiB)"
        for kind in BYTES
        if kind and (less := engine_gib(found, engine | {"quantization": kind}, rank)) <= allowed
    ]
    advice = f"add {' or '.join(fits)} to the profile's engine" if fits else "set MODEL to a smaller one"
    return f"an engine of {model.name} needs about {needed:.1f} GiB, and {said}; {advice}"


def check(model: Path, args: dict[str, Any], engine: dict[str, Any], workers: int) -> None:
    """Ask every machine of the cluster that has GPUs, before anything is loaded.

    Args:
        model: the base model's folder.
        args: the recipe's, as `recipe.load` returns them.
        engine: of the profile.
        workers: of Ray Train, one a GPU.

    Raises:
        TutorialError: fewer GPUs than `workers` have room for the recipe, or none for the engine.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked, found = ray.remote(num_cpus=0)(visible), []
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("GPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            found += ray.get(asked.options(scheduling_strategy=there).remote())
    if not found:
        return  # of a cluster that starts machines on demand none is up: each worker looks for itself
    found.sort(key=lambda gpu: -gpu.free)
    least = found[min(workers, len(found)) - 1]
    why = lacks(model, args, least) or engine_lacks(model, engine, found[0], args["lora_rank"])
    if why:
        raise TutorialError(why)
