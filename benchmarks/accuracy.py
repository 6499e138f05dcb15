"""Exact match of the recipe for SmolLM2-135M-Instruct, over seeds. From the project's root, with a GPU:

    python -m benchmarks.accuracy --data DATA

Runs README.ipynb up to the scores of its batch stage once for each candidate: gpu profile, one GPU, all rows,
benchmarks/lora_sft_smollm2.yaml, whose settings were chosen on `val` alone. A candidate is a seed, and what
else `--try` lays over the recipe. Those that run at once have a GPU each where there are as many. Prints a
table and writes benchmarks/gpu_accuracy.json: strict exact match on `val` and on `test`, free and guided by a
grammar, the loss on `val`, the seconds of each stage, and the mean and spread over the candidates.
"""

import os
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from benchmarks import batch_stage, common
from tutorial.settings import ROOT

RECIPE = ROOT / "benchmarks" / "lora_sft_smollm2.yaml"
CANDIDATES = {f"seed {number}": {"seed": number} for number in range(3)}
SMALL = {
    "PROFILE": "cpu",
    "RECIPE": "lora_sft_ray_cpu.yaml",
    "DATA": "sample",
    "TRAIN_ROWS": "24",
    "VAL_ROWS": "4",
    "TEST_ROWS": "6",
}
# An engine's share where several are on one GPU: the cache of 1,797 short answers has room in 4 GiB.
SHARE = {"gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 4 * 2**30}
# Both splits are asked for in one go, `val` first; afterwards they are told apart by number.
SYSTEMS = """
SYSTEMS = {name: SYSTEMS[name] for name in ("fine-tuned", "fine-tuned, guided")}
used["test"] = [*used["val"], *used["test"]]
"""
MORE = """{
    "splits": {
        name: {
            split: score.scores(list(part["answer"]), list(part["target"]), task.meaning).to_dict("index")
            for split, part in {
                "val": table[(table["system"] == name) & (table["id"] < len(SYSTEMS) * len(used["val"]))],
                "test": table[(table["system"] == name) & (table["id"] >= len(SYSTEMS) * len(used["val"]))],
            }.items()
        }
        for name in SYSTEMS
    },
    "training": {key: value for key, value in result.metrics.items() if isinstance(value, int | float)},
    "seconds": clock.seconds,
}"""
NOTED = ("eval_loss", "train_loss", "train_runtime", "epoch")


def one(overrides: dict[str, Any], folder: Path, engine: dict[str, Any], mean: float) -> dict[str, Any]:
    """Run the notebook for one candidate, with the settings of the environment."""
    recipe = yaml.safe_load(Path(os.environ["RECIPE"]).read_text(encoding="utf-8"))
    recipe |= {key: value for key, value in overrides.items() if key != "seed"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    os.environ |= {"RECIPE": str(path), "SEED": str(overrides.get("seed", 0))}
    found = batch_stage.execute(SYSTEMS, more=MORE, engine=engine, mean=mean)
    free, guided = found["splits"].values()
    exact = {split: free[split]["exact match"] for split in ("val", "test")}
    training = {key: found["training"][key] for key in NOTED if key in found["training"]}
    return {
        "val": exact["val"]["value"],
        "test": exact["test"]["value"],
        "test_low": exact["test"]["low"],
        "test_high": exact["test"]["high"],
        **{f"{split}, guided": guided[split]["exact match"]["value"] for split in ("val", "test")},
        "rows": {"train": found["train_rows"], "val and test": found["test_rows"]},
        "model": found["model"],
        "data": found["data"],
        "training": training,
        "seconds": found["seconds"],
        "total_s": round(sum(found["seconds"].values())),
    }


def table(found: dict[str, dict]) -> list[dict]:
    """The rows of the table."""
    return [
        {
            "candidate": name,
            "val": each["val"],
            "test": each["test"],
            "95% interval": f"{each['test_low']:.3f} to {each['test_high']:.3f}",
            "test, guided": each["test, guided"],
            "loss on val": each["training"].get("eval_loss"),
            "training, s": each["seconds"]["fine-tuning"],
            "in all, s": each["total_s"],
        }
        for name, each in found.items()
        if "failed" not in each
    ]


def together(found: dict[str, dict]) -> dict[str, Any]:
    """Mean, spread and extremes over the candidates."""
    done = [each for each in found.values() if "failed" not in each]
    if not done:
        return {}
    return {
        split: {
            "mean": statistics.mean(values),
            "standard deviation": statistics.stdev(values) if len(values) > 1 else None,
            "lowest": min(values),
            "highest": max(values),
        }
        for split in ("val", "test", "val, guided", "test, guided")
        if (values := [each[split] for each in done])
    }


def main() -> None:
    """Measure the candidates of the command line."""
    options = common.parser(__doc__, __file__, CANDIDATES)
    options.add_argument("--at-once", type=int, default=1, help="candidates; more than GPUs share them")
    options.add_argument(
        "--mean", type=float, default=0.0, help="share of the steps, the last, whose mean is the adapter"
    )
    options.add_argument("--port", type=int, default=8000, help="the first of as many as run at once")
    options.set_defaults(minutes=120)
    args = common.parse(options, CANDIDATES)
    own = {"PROFILE": "gpu", "RECIPE": str(RECIPE), "MODEL": "SmolLM2-135M-Instruct", "WORKERS": "1"}
    own |= SMALL if args.small else {}
    if args.data:
        own["DATA"] = args.data
    args.model = own["MODEL"]

    count = common.alone(common.machine)["GPU"]
    gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")
    free = queue.SimpleQueue()
    for number in range(args.at_once):
        free.put(gpus[number % len(gpus)])
    share = SHARE if args.at_once > len(gpus) and not args.small else {}

    with tempfile.TemporaryDirectory(prefix="seeds-") as folder:
        numbers = {name: number for number, name in enumerate(args.candidates)}

        def start(name: str) -> dict[str, Any]:
            """One candidate in a process of its own, with a Ray of its own."""
            place = Path(folder, str(numbers[name]))
            time.sleep(10 * (numbers[name] % args.at_once))  # their S3 servers look for free ports
            (place / "r").mkdir(parents=True)  # short: Ray makes sockets there, whose paths have a limit
            port = str(args.port + numbers[name])
            gpu = free.get()
            own_place = {"PORT": port, "RAY_TMPDIR": str(place / "r"), "CUDA_VISIBLE_DEVICES": gpu}
            env = os.environ | own | own_place
            given = yaml.safe_dump([args.candidates[name], str(place), share, args.mean])
            command = [sys.executable, "-c", "from benchmarks import accuracy; accuracy.child()"]
            for _ in range(3):
                done = subprocess.run(
                    command, env=env, cwd=ROOT, input=given, capture_output=True, text=True, check=False
                )
                if "local S3 server ended" not in done.stderr:  # another one took the same port
                    break
            free.put(gpu)
            if done.returncode:
                print(done.stderr[-5000:], file=sys.stderr, flush=True)
                raise RuntimeError(done.stderr)
            return yaml.safe_load((place / "found.yaml").read_text())

        with ThreadPoolExecutor(args.at_once) as pool:
            started: dict[str, Future] = {name: pool.submit(start, name) for name in args.candidates}
            common.run(args, lambda name, _: started[name].result(), table, together)
    for split, over in together({n: f.result() for n, f in started.items() if not f.exception()}).items():
        print(f"{split}: " + ", ".join(f"{key} {value:.4f}" for key, value in over.items() if value))


def child() -> None:
    """What `main` starts for each candidate: the arguments of `one` come from standard input."""
    overrides, folder, engine, mean = yaml.safe_load(sys.stdin.read())
    found = one(overrides, Path(folder), engine, mean)
    Path(folder, "found.yaml").write_text(yaml.safe_dump(found))


if __name__ == "__main__":
    main()
