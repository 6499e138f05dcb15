"""Exact match of other recipes, several of them trained at once on one GPU. From the project's root:

    python -m benchmarks.recipes --data DATA

How the settings of benchmarks/lora_sft_smollm2.yaml were found; `val` alone decides. LLaMA-Factory trains
SmolLM2-135M-Instruct on all rows once for each candidate, with the overrides of its name laid over that
recipe, and one vLLM engine answers `val` with each adapter: that of the last step, and the means of the
weights over the last 30% and 60% of the steps. Prints a table and writes benchmarks/gpu_recipes.json.

One key of a candidate is not LLaMA-Factory's: `seed` also draws the order of the rows, as in README.ipynb.
"""

import json
import multiprocessing
import os
import tempfile
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.accuracy import RECIPE, SHARE
from tutorial import data, model, recipe, score, settings

LARGER = {"per_device_train_batch_size": 32, "num_train_epochs": 8.0}  # fewer steps than 5 epochs of 16
CONSTANT = {"lr_scheduler_type": "constant_with_warmup"}
DOWN = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.3}}
WIDER = {"lora_rank": 128, "lora_alpha": 256, "learning_rate": 0.0007}
# Packs of 1,024 tokens: four of them are as many rows a step as the recipe has.
PACKED = {"packing": True, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
PROMPT = {"train_on_prompt": True}
# Each row the other way too, a sentence for a meaning: twice the rows, in as many steps.
BOTH = {"dataset": "train,reversed", "per_device_train_batch_size": 32}
CANDIDATES = {
    "recipe": {},
    "rate 0.0005": {"learning_rate": 0.0005},
    "rate 0.002, dropout 0.1": {"learning_rate": 0.002, "lora_dropout": 0.1},
    "rank 128, rate 0.0007, dropout 0.1": WIDER | {"lora_dropout": 0.1},
    "noise on embeddings": {"neftune_noise_alpha": 5},
    "label smoothing 0.1": {"label_smoothing_factor": 0.1},
    "LoRA+ 8, rate 0.0005": {"loraplus_lr_ratio": 8.0, "learning_rate": 0.0005},
    "rate down to 0.0003": DOWN,
    "weight decay 1, dropout 0.1": {"weight_decay": 1.0, "lora_dropout": 0.1},
    "constant, rate 0.0005": CONSTANT | {"learning_rate": 0.0005},
    "to 30%, noise": DOWN | {"neftune_noise_alpha": 5},
    "to 30%, rank 128": DOWN | WIDER,
    "batch 32, constant, noise": LARGER | CONSTANT | {"neftune_noise_alpha": 5},
    "batch 32, to 30%": LARGER | DOWN,
    "packed": PACKED,
    "neat packed": PACKED | {"neat_packing": True},
    "prompt": PROMPT,
    "prompt, to 30%": PROMPT | DOWN,
    "both ways, to 30%": BOTH | DOWN,
}
LAST = (0.3, 0.6)  # of the steps: the means are of their weights
QUICK = {
    "eval_strategy": "no",
    "do_eval": True,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def train(args: dict[str, Any], out: str) -> dict[str, float]:
    """Train in this process; the losses, and in `out` the adapter and the means."""
    from llamafactory.train.tuner import run_exp

    from benchmarks.mean import Mean

    run_exp(args | {"output_dir": out}, callbacks=[Mean(share, Path(out, f"mean {share}")) for share in LAST])
    found = json.loads(Path(out, "all_results.json").read_text())
    return {key: found[key] for key in ("eval_loss", "train_loss", "train_runtime")}


def start_engine(options: dict[str, Any], env: dict[str, str]) -> None:
    """The engine of this process."""
    global ENGINE  # noqa: PLW0603  a pool hands its processes nothing else
    os.environ.update(env)
    from vllm import LLM

    ENGINE = LLM(**options)


def exact_match(adapter: str, number: int, rows: dict[str, list[dict]]) -> dict[str, float]:
    """Strict exact match of each split with an adapter."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    asked = [data.messages(row) for part in rows.values() for row in part]
    answers = ENGINE.chat(
        asked,
        SamplingParams(temperature=0.0, max_tokens=common.TASK.max_tokens),
        use_tqdm=False,
        lora_request=LoRARequest(str(number), number, adapter),
    )
    texts = iter([answer.outputs[0].text for answer in answers])
    return {
        split: score.exact_match([next(texts) for _ in part], [row["output"] for row in part])
        for split, part in rows.items()
    }


def table(found: dict[str, dict]) -> list[dict]:
    """The rows of the table."""
    return [
        {
            "candidate": name,
            **{
                f"{split}, {of}": n for of, found in each["exact match"].items() for split, n in found.items()
            },
            "loss on val": each["training"]["eval_loss"],
            "training, s": each["training"]["train_runtime"],
        }
        for name, each in found.items()
        if "failed" not in each
    ]


def main() -> None:
    """Measure the candidates of the command line."""
    options = common.parser(__doc__, __file__, CANDIDATES)
    options.add_argument("--at-once", type=int, default=4, help="trainings that share the GPU")
    options.add_argument("--splits", nargs="+", default=["val"], choices=["val", "test"], help="to answer")
    options.set_defaults(minutes=120)
    args = common.parse(options, CANDIDATES)
    config = settings.load()
    path = model.folder(model.PACKAGED, config.shared_folder())
    args.model = model.PACKAGED

    base, ray_args = recipe.load(settings.ROOT / "lora_sft_ray_cpu.yaml" if args.small else RECIPE)
    os.environ |= ray_args["env_vars"]  # as its training workers have them
    base |= QUICK | {"model_name_or_path": str(path)}
    loaded = data.load(common.TASK, args.data or "sample")
    rows = {split: list(part[:8] if args.small else part) for split, part in loaded.items()}
    profile = common.profile(args, path, {})
    engine = profile.engine | {"model": str(path), "enable_lora": True, "max_loras": 1, "enforce_eager": True}
    engine["max_lora_rank"] = max((base | overrides)["lora_rank"] for overrides in args.candidates.values())
    if not args.small:
        engine |= SHARE | {"max_num_seqs": 1024, "max_num_batched_tokens": 16384}
    folders = {"last": "", **{f"mean {share}": f"mean {share}" for share in LAST}}
    numbers = {
        name: len(folders) * n + 1 for n, name in enumerate(args.candidates)
    }  # of the engine's adapters
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="recipes-") as scratch,
        ProcessPoolExecutor(args.at_once, mp_context=spawn, max_tasks_per_child=1) as trainers,
        ProcessPoolExecutor(1, spawn, start_engine, (engine, profile.worker_env)) as scorer,
        ThreadPoolExecutor(args.at_once) as pool,
    ):
        scorer.submit(int)  # the engine starts while the first ones train

        def one(name: str) -> dict[str, Any]:
            overrides = args.candidates[name]
            folder, seed = Path(scratch, str(numbers[name])), overrides.get("seed", 0)
            parts = {split: data.pick(rows[split], None, seed) for split in ("train", "val")}
            data.write(parts, folder / "data")
            info = folder / "data" / "dataset_info.json"
            reversed_ = {"file_name": "train.jsonl", "columns": {"prompt": "output", "response": "input"}}
            info.write_text(json.dumps(json.loads(info.read_text()) | {"reversed": reversed_}))
            given = base | overrides | {"seed": seed, "dataset_dir": str(folder / "data")}
            found = {"training": trainers.submit(train, given, str(folder / "out")).result()}
            asked = {split: rows[split] for split in args.splits}
            found["exact match"] = {
                which: scorer.submit(exact_match, str(folder / "out" / sub), number, asked).result()
                for number, (which, sub) in enumerate(folders.items(), numbers[name])
            }
            print(name, found, flush=True)
            return found

        started: dict[str, Future] = {name: pool.submit(one, name) for name in args.candidates}
        common.run(args, lambda name, _: started[name].result(), table)


if __name__ == "__main__":
    main()
