"""Training speed, memory and loss of a recipe's settings. From the project's root, on a machine with a GPU:

    python -m benchmarks.train

Runs README.ipynb's cell with `train_loop` (Ray Train, LLaMA-Factory) once for each candidate: the overrides
of its name laid over lora_sft_ray.yaml, for some seconds after the first steps. Prints a table and writes
benchmarks/gpu_train.json: samples and tokens a second (tokens of the rows, no padding), peak memory with an
evaluation before the first step, the share of the bf16 matrix limit, and the loss after as many samples as
all candidates have seen, which is the mean over the second half of them. The learning rate is constant, so
that a run that is cut by time is at the same rate at the same sample.

Three keys of a candidate are not LLaMA-Factory's: `workers` of Ray Train; `memory_gib`, the most that PyTorch
may take (a 24 GB L4 has 22 in all); and `input_casts`, false where PEFT's casts of the adapters' inputs to
float32 and back are left out.

The share counts 4 FLOP per token and parameter of the matrix products, which the input embedding is not:
forward and backward through frozen weights; what checkpointing computes again is not counted. The limit is
that of large matrix products, measured at the start.
"""

import json
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common

NO_CHECKPOINTS = {"disable_gradient_checkpointing": True}
PACKED = {"packing": True, "cutoff_len": 2048, "per_device_eval_batch_size": 1}
HALF = PACKED | {"cutoff_len": 1024}  # about four rows of ViGGO
LIGER = {"enable_liger_kernel": True}
NO_CASTS = {"input_casts": False}
L4 = {"memory_gib": 21}  # beside what CUDA itself takes


def batch(size: int, accumulation: int = 1, rate: float = 2e-4) -> dict[str, Any]:
    """The overrides of a micro-batch, every lever off."""
    return {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": rate,
        "disable_gradient_checkpointing": False,
        "enable_liger_kernel": False,
        "packing": False,
        "cutoff_len": 2048,
    }


# The order in which they are worth the time, for --minutes. A packed example holds about eight rows of ViGGO.
CANDIDATES = {
    "ancestor": batch(1, 8),
    "recipe": {},
    "packed 4": batch(4) | PACKED | NO_CHECKPOINTS,
    "packed 4, liger": batch(4) | PACKED | NO_CHECKPOINTS | LIGER,
    "packed 4, liger, no casts": batch(4, rate=8e-4) | PACKED | NO_CHECKPOINTS | LIGER | NO_CASTS,
    "packed 8, liger, no casts": batch(8, rate=8e-4) | PACKED | NO_CHECKPOINTS | LIGER | NO_CASTS,
    "packed 2, liger, no casts": batch(2, rate=6e-4) | PACKED | NO_CHECKPOINTS | LIGER | NO_CASTS,
    "packed 1, liger, no casts": batch(1, rate=3e-4) | PACKED | NO_CHECKPOINTS | LIGER | NO_CASTS,
    "packed 1, liger": batch(1, rate=3e-4) | PACKED | NO_CHECKPOINTS | LIGER,
    "batch 32": batch(32) | NO_CHECKPOINTS,
    "batch 32, liger": batch(32) | NO_CHECKPOINTS | LIGER,
    "neat packed 4, liger": batch(4) | PACKED | NO_CHECKPOINTS | LIGER | {"neat_packing": True},
    "packed 4, liger, loaders": batch(4) | PACKED | NO_CHECKPOINTS | LIGER | {"dataloader_num_workers": 4},
    "packed 4, liger, pure bf16": batch(4) | PACKED | NO_CHECKPOINTS | LIGER | {"pure_bf16": True},
    "packed 4, compiled": batch(4) | PACKED | NO_CHECKPOINTS | {"torch_compile": True},
    "packed 4, fa2": batch(4) | PACKED | NO_CHECKPOINTS | {"flash_attn": "fa2"},
    # As a 24 GB L4 has it: the activations of 2,048 tokens have no room without checkpoints.
    "21 GiB, packed 1 of 1024, liger, no casts": (
        batch(1, 2, 3e-4) | HALF | NO_CHECKPOINTS | LIGER | NO_CASTS | L4
    ),
    "21 GiB, packed 1 of 1024, liger": batch(1, 2, 3e-4) | HALF | NO_CHECKPOINTS | LIGER | L4,
    "21 GiB, packed 1, checkpoints": batch(1) | PACKED | L4,
    "21 GiB, packed 1, checkpoints, liger": batch(1) | PACKED | LIGER | L4,
    "21 GiB, packed 4, checkpoints, liger": batch(4, rate=8e-4) | PACKED | LIGER | L4,
    "21 GiB, packed 4, checkpoints, liger, no casts": batch(4, rate=8e-4) | PACKED | LIGER | NO_CASTS | L4,
    "21 GiB, batch 8, checkpoints, liger": batch(8) | LIGER | L4,
}
for _workers in (2, 4):
    CANDIDATES |= {
        f"{_name}, {_workers} workers": CANDIDATES[_name] | {"workers": _workers}
        for _name in ("ancestor", "packed 4, liger, no casts", "packed 1, liger, no casts")
    }
SAME_FOR_ALL = {
    "num_train_epochs": 1000.0,  # the seconds end it
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
    "eval_strategy": "no",
    "eval_on_start": True,  # an evaluation needs memory too
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 1,
    "dataloader_drop_last": True,
}


def matrix_limit(size: int) -> float:
    """FLOP a second of a bf16 matrix product on random data, median of 20."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(25):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[5:])


def tokens_per_row(rows: list[dict[str, str]], model_path: Path) -> float:
    """The mean length of a row under the chat template, with its answer."""
    from transformers import AutoTokenizer

    from tutorial import data

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    said = [[*data.messages(row), {"role": "assistant", "content": row["output"]}] for row in rows]
    return statistics.mean(map(len, tokenizer.apply_chat_template(said, return_dict=False)))


def train(recipe_args: dict, ray_args: dict, data_uri: str, folder: Path, meter: partial) -> dict[str, Any]:
    """Run the notebook's cell; what the meter found."""
    import ray

    from tutorial import failure, model, settings, storage

    loop, rest = common.cell("def train_loop").split("\ntrainer = ")
    names = {
        "json": json,
        "shutil": shutil,
        "tempfile": tempfile,
        "Path": Path,
        "ray": ray,
        "storage": storage,
        "model": model,
        "failure": failure,
        "config": settings.load().model_copy(update={"kill_worker": False}),
        "llamafactory_args": recipe_args,
        "ray_args": ray_args,
        "data_uri": data_uri,
        "store": storage.Storage(root=str(folder), run_name="run"),
    }
    common.execute(loop, names)
    # train_loop makes one, and hands it to LLaMA-Factory.
    names["RayTrainReportCallback"] = partial(meter, path=folder / "found.json")
    common.execute(f"trainer = {rest}", names)
    return json.loads((folder / "found.json").read_text())


def table(found: dict[str, dict], limit: float, tokens: float) -> list[dict]:
    """Work out what depends on all candidates, and the rows of the table."""
    done = {name: each for name, each in found.items() if "failed" not in each}
    samples = min((each["losses"][-1][0] for each in done.values()), default=0)
    first = next(iter(done.values()), {})
    shown = []
    for name, each in done.items():
        seen = [loss for sample, loss in each["losses"] if samples / 2 < sample <= samples]
        each["tokens_per_s"] = each["samples_per_s"] * tokens
        each["share_of_limit"] = 4 * each["parameters"] * each["tokens_per_s"] / limit / each["workers"]
        each["loss"] = {"samples": samples, "mean": statistics.mean(seen) if seen else None}
        each["over_first"] = each["samples_per_s"] / first["samples_per_s"]
        shown.append(
            {
                "candidate": name,
                "samples/s": each["samples_per_s"],
                f"over {next(iter(done))}": each["over_first"],
                "tokens/s": round(each["tokens_per_s"]),
                "of the limit": f"{each['share_of_limit']:.1%}",
                "GiB, PyTorch": each.get("torch_gib"),
                "GiB, GPU": each.get("device_gib"),
                f"loss at {samples}": each["loss"]["mean"],
                "attention": each["attention"],
            }
        )
    return shown


def main() -> None:
    """Measure the candidates of the command line."""
    options = common.parser(__doc__, __file__, CANDIDATES)
    options.add_argument("--seconds", type=float, default=15, help="to measure each candidate for")
    options.add_argument("--samples", type=int, default=0, help="that each candidate sees at least")
    options.add_argument("--warmup", type=int, default=5, help="steps before that")
    options.add_argument("--rows", type=int, default=5103, help="as many as ViGGO has")
    options.add_argument("--workers", type=int, default=1, help="Ray Train workers, one a GPU")
    args = common.parse(options, CANDIDATES)

    import ray

    from benchmarks.meter import Meter
    from tutorial import data, recipe, settings

    model_path, _ = common.prepare(args.model)
    limit = common.alone(matrix_limit, 512 if args.small else 8192)
    rows = common.rows(args.rows, args.data)
    tokens = tokens_per_row(rows, model_path)
    print(f"bf16 matrix limit {limit / 1e12:.3g} TFLOP/s, {tokens:.0f} tokens a row", flush=True)

    base, ray_args = recipe.load(
        settings.ROOT / ("lora_sft_ray_cpu.yaml" if args.small else "lora_sft_ray.yaml")
    )
    base |= SAME_FOR_ALL | {"model_name_or_path": str(model_path)}
    ray_args |= {"max_failures": 0, "num_to_keep": 1}
    meter = partial(
        Meter,
        rows=args.rows,
        seconds=args.seconds,
        samples=args.samples,
        warmup=args.warmup,
    )
    ray.init(
        runtime_env=settings.runtime_env({}),
        log_to_driver=False,
        logging_level="error",
        **settings.local_cluster(),
    )
    with tempfile.TemporaryDirectory() as scratch:
        data.write({"train": rows, "val": rows[:48]}, Path(scratch, "data"))

        def measure(name: str, overrides: dict) -> dict[str, Any]:
            recipe_args = base | overrides
            workers = recipe_args.pop("workers", args.workers)
            casts, memory = recipe_args.pop("input_casts", True), recipe_args.pop("memory_gib", None)
            measuring = partial(meter, input_casts=casts, memory_gib=memory)
            folder = Path(tempfile.mkdtemp(dir=scratch))
            ray_section = ray_args | {"num_workers": workers}
            found = train(recipe_args, ray_section, f"{scratch}/data", folder, measuring)
            return {"workers": workers} | found

        args.limit_tflops, args.tokens_per_row = limit / 1e12, tokens
        common.run(args, measure, lambda found: table(found, limit, tokens))
    ray.shutdown()


if __name__ == "__main__":
    main()
