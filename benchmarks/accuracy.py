"""Exact match of the recipe for SmolLM2-135M-Instruct, over seeds. From the project's root, with a GPU:

    python -m benchmarks.accuracy --data DATA

Runs README.ipynb up to its batch stage once for each candidate: gpu profile, one GPU, all rows,
benchmarks/lora_sft_smollm2.yaml, whose settings were chosen on `val` alone. A candidate is a seed, whether to
`kill` a worker, and what else `--try` lays over the recipe. As many run at once as there are GPUs. Prints a
table and writes JSON: strict exact match on `val` and on `test`, free and guided by a grammar, the loss on
`val`, the seconds of each stage, and the mean and spread over the candidates.
"""

import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from benchmarks import common
from tutorial import score
from tutorial.settings import ROOT

OWN = {"PROFILE": "gpu", "RECIPE": "benchmarks/lora_sft_smollm2.yaml", "MODEL": "SmolLM2-135M-Instruct"}
CANDIDATES = {f"seed {number}": {"seed": number} for number in range(3)}
COLUMNS = ("val", "test", "test_low", "test_high", "test, guided", "seconds/fine-tuning", "total_s")
KINDS = ("val", "test", "val, guided", "test, guided")


def one() -> dict[str, Any]:
    """Run the notebook for one candidate, with the settings of the environment."""
    with common.notebook() as names:
        rows = names["rows"]
        asked, val = [*rows["val"], *rows["test"]], len(rows["val"])
        systems = {name: names["SYSTEMS"][name] for name in ("fine-tuned", "fine-tuned, guided")}
        exact = {}
        for system, answered in common.ask(names, asked, systems).items():
            for split, part in (("val", answered[:val]), ("test", answered[val:])):
                scores = score.scores(list(part["answer"]), list(part["target"]), names["run"].kind)
                exact[split + system.removeprefix("fine-tuned")] = scores.iloc[0].to_dict()  # exact match
        names["run"].lap("batch inference")
        seconds, facts = names["run"].seconds, common.facts(names)
        found = {kind: exact[kind]["value"] for kind in KINDS} | {
            key: facts[key] for key in ("model", "data")
        }
        return found | {
            "test_low": exact["test"]["low"],
            "test_high": exact["test"]["high"],
            "rows": {"train": len(rows["train"]), "val and test": len(asked)},
            "training": names["result"].metrics,
            "fault": names["trained"].fault,  # {} if no worker was killed
            "seconds": seconds,
            "total_s": round(sum(seconds.values())),
        }


def together(found: dict[str, dict]) -> dict[str, Any]:
    """Mean, spread and extremes over the candidates."""
    return {
        kind: {
            "mean": statistics.mean(values),
            "standard deviation": statistics.stdev(values) if len(values) > 1 else None,
            "lowest": min(values),
            "highest": max(values),
        }
        for kind in KINDS
        if (values := [each[kind] for each in found.values()])
    }


def on_gpus(work: Callable[[str, str], Any], names: Iterable[str], gpus: list[str]) -> dict[str, Future]:
    """Call `work` with each name and a GPU, for as many names at once as there are GPUs."""
    own, free = threading.local(), iter(gpus)  # each thread keeps one, whatever becomes of its calls
    pool = ThreadPoolExecutor(len(gpus), initializer=lambda: setattr(own, "gpu", next(free)))
    return {name: pool.submit(lambda name=name: work(name, own.gpu)) for name in names}


def main(argv: list[str] | None = None) -> None:
    """Measure the candidates of the command line."""
    options = common.parser(__doc__, "accuracy", CANDIDATES)
    options.set_defaults(minutes=120)
    args = common.parse(options, CANDIDATES, argv)
    own = (
        OWN
        | {"WORKERS": "1"}
        | (common.SMALL if args.small else {})
        | ({"DATA": args.data} if args.data else {})
    )
    recipe = yaml.safe_load((ROOT / own["RECIPE"]).read_text(encoding="utf-8"))
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
        map(str, range(int(args.machine.get("GPU", 0))))
    )

    def start(name: str, gpu: str) -> dict[str, Any]:
        """One candidate in a process of its own, with a Ray of its own."""
        overrides = dict(args.candidates[name])
        # A short path: Ray makes sockets there, and the length of theirs has a limit.
        with tempfile.TemporaryDirectory(prefix="s-") as folder:
            path = Path(folder, "recipe.yaml")
            seed, kill = str(overrides.pop("seed", 0)), str(int(overrides.pop("kill", False)))
            path.write_text(yaml.safe_dump(recipe | overrides), encoding="utf-8")
            env = {"RECIPE": str(path), "SEED": seed, "KILL_WORKER": kill, "PORT": ""}
            return common.alone(one, env=own | env | {"RAY_TMPDIR": folder, "CUDA_VISIBLE_DEVICES": gpu})

    started = on_gpus(start, args.candidates, gpus.split(","))
    common.compare(args, lambda name, _: started[name].result(), together, COLUMNS)


if __name__ == "__main__":
    main()
