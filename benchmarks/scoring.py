"""How long scoring 100,000 pairs takes, intervals included. From the project's root:

    python -m benchmarks.scoring

Twice, as a text is parsed once however often it comes: with answers as a model gives them, two thirds right
and the rest damaged by a seeded generator, and with every answer another, the slowest case. The targets are
the sample's, repeated. Prints what it measured and writes it to benchmarks/scoring.json.
"""

import json
import os
import platform
import random
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tutorial import sample, score, task

PAIRS = 100_000
RESAMPLES = 2000


def damage(target: str, others: list[str], rng: random.Random) -> str:
    """Cut off, said twice, another target, without its first attribute, or with a letter changed."""
    cut = rng.randrange(len(target))
    return rng.choice(
        [
            target[:cut],
            f"{target} {target}",
            rng.choice(others),
            target.partition("(")[0] + "(" + target.partition("], ")[2],
            target[:cut] + rng.choice("abcdefghijklmnopqrstuvwxyz") + target[cut + 1 :],
        ]
    )


def measure(answers: list[str], targets: list[str]) -> dict[str, float]:
    """Seconds of one call on these pairs."""
    clock, cpu = time.perf_counter(), time.process_time()
    score.scores(answers, targets, task.load("viggo").meaning, resamples=RESAMPLES)
    seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return {
        "distinct_answers": len(set(answers)),
        "seconds": round(seconds, 2),
        "cores_used": round(cpu / seconds, 2),  # CPU seconds a second
    }


rng = random.Random(0)  # noqa: S311  a seeded benchmark, no secret
known = [row["output"] for part in sample.rows().values() for row in part]
targets = (known * (PAIRS // len(known) + 1))[:PAIRS]
damaged = [damage(target, known, rng) if rng.random() < 1 / 3 else target for target in targets]
measured = {
    "date": f"{datetime.now(UTC):%Y-%m-%d}",
    "pairs": PAIRS,
    "meanings": len(set(targets)),
    "resamples": RESAMPLES,
    "a third damaged": measure(damaged, targets),
    "all distinct": measure([f"{t[:-2]} {number}{t[-2:]}" for number, t in enumerate(targets)], targets),
    "cpus": os.cpu_count(),
    "python": platform.python_version(),
    "packages": {package: version(package) for package in ("lark", "numpy", "pandas")},
}
print(json.dumps(measured, indent=2))
Path(__file__).with_suffix(".json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
