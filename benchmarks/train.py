"""Training speed, memory and loss of a recipe's settings. From the project's root, on a machine with a GPU:

    python -m benchmarks.train

Runs README.ipynb's `train_loop` (Ray Train, LLaMA-Factory) once for each candidate: its overrides laid over
lora_sft_ray.yaml, for some seconds after the first steps. Prints a table and writes JSON: samples and tokens
a second (tokens of the rows, no padding), peak memory with an evaluation before the first step, the share of
the bf16 matrix limit, and the loss after as many samples as all candidates have seen, which is the mean over
the second half of them. The learning rate is constant, so that a run that is cut by time has the same rate at
the same sample.

Three keys of a candidate are not LLaMA-Factory's: `workers` of Ray Train; `memory_gib`, the most that PyTorch
may take (a 24 GB L4 has 22 in all); and `input_casts`, which is false if PEFT is not to cast the adapters'
inputs to float32 and back.

The share counts 4 FLOP per token and parameter of the matrix products, which the input embedding is not:
forward and backward through frozen weights; what checkpointing computes again is not counted. The limit is
that of large matrix products, measured at the start.
"""

import json
import secrets
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.benchmark import Timer
from transformers import AutoTokenizer, TrainerCallback

from benchmarks import common
from tutorial.settings import ROOT, read_yaml

GIB = 2**30
CHECKPOINTS, NO_CHECKPOINTS = ({"disable_gradient_checkpointing": off} for off in (False, True))
PACKED = {"packing": True, "cutoff_len": 2048, "per_device_eval_batch_size": 1}
HALF = PACKED | {"cutoff_len": 1024}  # about four rows of ViGGO
LIGER = {"enable_liger_kernel": True}
FASTEST = PACKED | NO_CHECKPOINTS | LIGER | {"input_casts": False}
L4 = {"memory_gib": 21}  # beside what CUDA itself takes


def batch(size: int, accumulation: int = 1, rate: float = 2e-4) -> dict[str, Any]:
    """The overrides of a micro-batch, without anything that makes it faster."""
    return {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": rate,
        "disable_gradient_checkpointing": False,
        "enable_liger_kernel": False,
        "packing": False,
        "neat_packing": False,
        "cutoff_len": 2048,
    }


# The order in which they are worth the time, for --minutes. A pack of 2,048 tokens holds about eight rows.
CANDIDATES = {
    "ancestor": batch(1, 8),
    "recipe": {},
    # As a 24 GB L4 has it: the activations of 2,048 tokens have no room without checkpoints.
    "21 GiB, packed 1 of 1024, liger": batch(1, 2, 3e-4) | HALF | NO_CHECKPOINTS | LIGER | L4,
    "21 GiB, packed 4, checkpoints, liger, no casts": batch(4, rate=8e-4) | FASTEST | CHECKPOINTS | L4,
    "packed 2, liger, no casts": batch(2, rate=6e-4) | FASTEST,
    "packed 8, liger, no casts": batch(8, rate=8e-4) | FASTEST,
    "packed 4, liger, no casts": batch(4, rate=8e-4) | FASTEST,
    "packed 4, liger, no casts, 2 workers": batch(4, rate=8e-4) | FASTEST | {"workers": 2},
}
COLUMNS = ("samples_per_s", "over_first", "share_of_limit", "torch_gib", "device_gib", "loss/mean")
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


@dataclass
class Meter(TrainerCallback):
    """Measures a training and ends it after some seconds.

    Args:
        path: the file that gets what was found, as JSON.
        rows: in the data; a packed example holds several.
        seconds: to measure, once the first steps are over.
        samples: rows that the training sees at least.
        warmup: the first steps, at least one, in which kernels are compiled and memory is claimed.
        memory_gib: the most that PyTorch may take of the GPU, None for all.
        input_casts: whether PEFT casts the input of each adapter to the adapter's float32. Under autocast the
            product casts it back to bf16 at once.
    """

    path: Path
    rows: int
    seconds: float
    samples: int
    warmup: int
    memory_gib: float | None
    input_casts: bool

    def __post_init__(self):
        self.losses, self.device_bytes = [], 0
        if self.memory_gib:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.memory_gib * GIB / total))

    def on_train_begin(self, args, state, control, *, train_dataloader, model, **kwargs):
        from peft.helpers import disable_input_dtype_casting

        examples = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.rows_per_step = examples * self.rows / len(train_dataloader.dataset)
        frozen = ("lora_", "embed_tokens")
        base = [p for name, p in model.named_parameters() if not any(part in name for part in frozen)]
        self.found = {
            "parameters": sum(p.numel() for p in base),
            "attention": model.config._attn_implementation,
            "checkpointing": model.is_gradient_checkpointing,
        }
        self.without_casts = ExitStack()  # until the training ends
        self.without_casts.enter_context(disable_input_dtype_casting(model, active=not self.input_casts))

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            free, total = torch.cuda.mem_get_info()  # all that the GPU holds, CUDA's own part too
            self.device_bytes = max(self.device_bytes, total - free)
        self.last = state.global_step, time.perf_counter()
        if state.global_step <= max(1, self.warmup):
            self.first = self.last
        seen = state.global_step * self.rows_per_step >= self.samples
        over = torch.tensor(float(seen and self.last[1] - self.first[1] >= self.seconds), device=args.device)
        if args.world_size > 1:  # all workers stop at the same step
            torch.distributed.all_reduce(over)
        control.should_training_stop |= bool(over)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.losses.append([round(state.global_step * self.rows_per_step), logs["loss"]])

    def on_train_end(self, args, state, control, **kwargs):
        self.without_casts.close()
        if not state.is_world_process_zero:
            return
        steps, seconds = (last - first for first, last in zip(self.first, self.last, strict=True))
        self.found |= {
            "steps": steps,
            "seconds": seconds,
            "rows_per_step": self.rows_per_step,
            "samples_per_s": steps * self.rows_per_step / seconds,
            "losses": self.losses,
        }
        if torch.cuda.is_available():
            self.found["torch_gib"] = torch.cuda.max_memory_reserved() / GIB
            self.found["device_gib"] = self.device_bytes / GIB
        self.path.write_text(json.dumps(self.found))


def matrix_limit(size: int) -> float:
    """FLOP a second of a bf16 matrix product on random data, median over a second or more."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    factors = {name: torch.randn(size, size, device=device).bfloat16() for name in "ab"}
    timer = Timer("a @ b", globals=factors, num_threads=torch.get_num_threads())  # waits for the GPU
    return 2 * size**3 / timer.blocked_autorange(min_run_time=1).median


def derive(found: dict[str, dict], limit: float, tokens: float) -> dict:
    """Work out what depends on all candidates."""
    samples = min((each["losses"][-1][0] for each in found.values()), default=0)
    for each in found.values():
        seen = [loss for sample, loss in each["losses"] if samples / 2 < sample <= samples]
        each["tokens_per_s"] = each["samples_per_s"] * tokens
        each["share_of_limit"] = 4 * each["parameters"] * each["tokens_per_s"] / limit / each["workers"]
        each["loss"] = {"samples": samples, "mean": statistics.mean(seen) if seen else None}
        each["over_first"] = each["samples_per_s"] / next(iter(found.values()))["samples_per_s"]
    return {}


def main(argv: list[str] | None = None) -> None:
    """Measure the candidates of the command line."""
    options = common.parser(__doc__, "train", CANDIDATES, model=True)
    options.add_argument("--seconds", type=float, default=15, help="to measure each candidate for")
    options.add_argument("--samples", type=int, default=0, help="that each candidate sees at least")
    options.add_argument("--warmup", type=int, default=5, help="steps before that")
    options.add_argument("--rows", type=int, default=5103, help="as many as ViGGO has")
    options.add_argument("--workers", type=int, default=1, help="Ray Train workers, one a GPU")
    args = common.parse(options, CANDIDATES, argv)
    from tutorial import data, prompt, recipe, run
    from tutorial.files import Place

    model_path, _ = common.prepare(args.model)
    limit = common.alone(matrix_limit, 512 if args.small else 8192)
    rows = common.rows(args.rows, args.data)
    base = read_yaml(ROOT / f"lora_sft_ray{'_cpu' * args.small}.yaml") | SAME_FOR_ALL
    measured = {key: vars(args)[key] for key in ("rows", "seconds", "samples", "warmup")}
    make_trainer = run.define("train-loop", "trainer")["make_trainer"]
    common.start_ray()
    with tempfile.TemporaryDirectory() as scratch:

        def chat_of(folder: Path, overrides: dict) -> tuple[prompt.Chat, dict]:
            """How the model is trained with a recipe, which is checked whole; and Ray Train's part of it."""
            path = folder / "recipe.yaml"
            path.write_text(yaml.safe_dump(base | overrides))
            recipe_args, ray_args = recipe.load(path)
            return prompt.Chat(model_path, recipe_args), ray_args

        chat, _ = chat_of(Path(scratch), {})
        splits = {"train": chat.rows(rows), "val": chat.rows(rows[:48])}
        data.write(splits, Path(scratch, "data"), chat.columns)
        said = [[*chat.messages(row), {"role": "assistant", "content": row["output"]}] for row in rows]
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        tokens = statistics.mean(map(len, tokenizer.apply_chat_template(said, return_dict=False)))
        print(f"bf16 matrix limit {limit / 1e12:.3g} TFLOP/s, {tokens:.0f} tokens a row", flush=True)

        def measure(name: str, overrides: dict) -> dict[str, Any]:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            ours = {"workers": args.workers, "memory_gib": None, "input_casts": True}
            ours = {key: overrides.get(key, value) for key, value in ours.items()}
            chat, ray_args = chat_of(folder, {key: overrides[key] for key in overrides.keys() - ours})
            workers = ours.pop("workers")
            loop_config = {
                "args": chat.recipe_args,
                "model": str(model_path),
                "data": Place.of(f"{scratch}/data"),
                "scratch": f"benchmark-{secrets.token_hex(8)}",
                "callbacks": [partial(Meter, path=folder / "found.json", **measured, **ours)],
            }
            ray_args |= {"num_workers": workers, "max_failures": 0, "num_to_keep": 1}
            result = make_trainer(loop_config, ray_args, Place.of(str(folder))).fit()
            if not (found := folder / "found.json").is_file():
                raise RuntimeError(result.return_value or "no step was trained")
            return {"workers": workers} | json.loads(found.read_text())

        args.limit_tflops, args.tokens_per_row = limit / 1e12, tokens
        common.compare(args, measure, lambda found: derive(found, limit, tokens), COLUMNS)
    common.end_ray()


if __name__ == "__main__":
    main()
