"""Exact match of the recipe for SmolLM2-135M-Instruct, over seeds. From the project's root, with a GPU:

    python -m benchmarks.accuracy --data DATA

Runs README.ipynb up to its batch stage once for each candidate: gpu profile, one GPU, all rows,
benchmarks/lora_sft_smollm2.yaml, whose settings were chosen on `val` alone. A candidate is a seed, and what
else `--try` lays over the recipe. As many run at once as there are GPUs. Prints a table and writes JSON:
strict exact match on `val` and on `test`, free and guided by a grammar, the loss on `val`, the seconds of
each stage, and the mean and spread over the candidates.
"""

import os
import queue
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from benchmarks import common
from tutorial import score
from tutorial.settings import ROOT

OWN = {"PROFILE": "gpu", "RECIPE": "benchmarks/lora_sft_smollm2.yaml", "MODEL": "SmolLM2-135M-Instruct"}
CANDIDATES = {f"seed {number}": {"seed": number} for number in range(3)}
NOTED = ("eval_loss", "train_loss", "train_runtime", "epoch")
COLUMNS = ("val", "test", "test_low", "test_high", "test, guided", "seconds/fine-tuning", "total_s")
KINDS = ("val", "test", "val, guided", "test, guided")


def one() -> dict[str, Any]:
    """Run the notebook for one candidate, with the settings of the environment."""
    with common.notebook() as names:
        used, val = names["used"], len(names["used"]["val"])
        rows = [*used["val"], *used["test"]]
        systems = {name: names["SYSTEMS"][name] for name in ("fine-tuned", "fine-tuned, guided")}
        exact = {}
        for system, answered in common.ask(names, rows, systems).items():
            for split, part in (("val", answered[:val]), ("test", answered[val:])):
                scores = score.scores(list(part["answer"]), list(part["target"]), names["task"].meaning)
                exact[split + system.removeprefix("fine-tuned")] = scores.loc["exact match"].to_dict()
        names["clock"].stage(None)
        seconds, facts = names["clock"].seconds, common.facts(names)
        return {kind: exact[kind]["value"] for kind in KINDS} | {
            "test_low": exact["test"]["low"],
            "test_high": exact["test"]["high"],
            "rows": {"train": len(used["train"]), "val and test": len(rows)},
            "model": facts["model"],
            "data": facts["data"],
            "training": {key: value for key, value in names["result"].metrics.items() if key in NOTED},
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
    free = queue.SimpleQueue()
    for gpu in gpus.split(","):
        free.put(gpu)

    def start(overrides: dict[str, Any], folder: Path) -> dict[str, Any]:
        """One candidate in a process of its own, with a Ray of its own."""
        folder.mkdir()
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe | {"seed": 0} | overrides), encoding="utf-8")
        env = {"RECIPE": str(path), "SEED": str(overrides.get("seed", 0)), "KILL_WORKER": "0", "PORT": ""}
        gpu = free.get()
        try:
            return common.alone(one, env=own | env | {"RAY_TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": gpu})
        finally:
            free.put(gpu)

    # A short path: Ray makes sockets there, and the length of theirs has a limit.
    with tempfile.TemporaryDirectory(prefix="s-") as folder, ThreadPoolExecutor(free.qsize()) as pool:
        started = {
            name: pool.submit(start, overrides, Path(folder, str(number)))
            for number, (name, overrides) in enumerate(args.candidates.items())
        }
        common.compare(args, lambda name, _: started[name].result(), together, COLUMNS)


if __name__ == "__main__":
    main()
