"""The pages docs/*.md, each made from its template docs/*.md.j2 and what was measured. From the root:

    python -m docs.render

A template holds no figure of its own. Its variables are those of `context`: the JSON files of
benchmarks/results/ by their names, results.json as `run`, what is computed from benchmarks/prices.yaml, the
profiles, the recipes and the pinned versions.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import beta

from tutorial.machine import MEMORY
from tutorial.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
# Without the macros, and without the template that nbconvert makes README.md with.
PAGES = [path for path in sorted((ROOT / "docs").glob("[!_]*.md.j2")) if path.stem != "readme.md"]
WORDS = {1: "one", 2: "two", 4: "four", 8: "eight"}


def percent(share: float, digits: int = 0) -> str:
    """A share from 0 to 1 as `68%`."""
    return f"{100 * share:.{digits}f}%"


def of(share: float, rows: int) -> str:
    """A share of some rows as `41 of 60`."""
    return f"{round(share * rows):,} of {rows:,}"


def interval(share: float, meanings: float) -> tuple[float, float]:
    """Clopper and Pearson's 95% interval, from 0 to 1, of a share of so many meanings."""
    right, wrong = meanings * share, meanings * (1 - share)
    low = float(beta.ppf(0.025, right, wrong + 1)) if right else 0.0
    return low, float(beta.ppf(0.975, right + 1, wrong)) if wrong else 1.0


def between(score: dict[str, float], meanings: float | None = None) -> str:
    """A score's 95% interval as `55 to 81%`: of so many meanings, else the one stored with it."""
    low, high = interval(score["value"], meanings) if meanings else (score["low"], score["high"])
    return f"{100 * low:.0f} to {100 * high:.0f}%"


def duration(seconds: float) -> str:
    """Seconds as a reader counts them: `38 s` or `10 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def number(value: float, digits: int = 0) -> str:
    """A figure with commas between thousands."""
    return f"{value:,.{digits}f}"


def machine(result: dict[str, Any]) -> str:
    """What a result was measured on, as `one H200` or `two CPU cores`."""
    found = result["stamp"]["machine"]
    kind = found["accelerators"][0].removeprefix("NVIDIA ").split()[0] if found["gpus"] else "CPU cores"
    count = found["gpus"] or found["cpus"]
    return f"{WORDS.get(count, count)} {kind}"


def costs(found: dict[str, Any], prices: dict[str, Any]) -> list[dict[str, Any]]:
    """The machines of benchmarks/prices.yaml with rows per second, hours and dollars of a 7B's work on each.

    Scaled from one measured card. Training reaches the same share of a card's bf16 peak, and several cards
    speed it up as much as several H200. Answers slow down with the peak or the memory bandwidth, whichever is
    worse. The rest of the notebook takes what it took.
    """
    base, machines = prices["cards"][prices["measured"]], []
    for machine in prices["machines"]:
        card, count = prices["cards"][machine["card"]], machine["count"]
        ratios = {limit: card[limit] / base[limit] for limit in ("bf16_tflops", "memory_gb_s")}
        bound = min(ratios, key=ratios.__getitem__)
        one_gpu = found["train-h100-12gb"]["candidates"]["recipe"]["samples_per_s"]
        together = found["train-h200-4gpu"]["candidates"][f"{count} worker{'s' * (count > 1)}"]["over_first"]
        training = together * ratios["bf16_tflops"] * one_gpu
        answers = count * ratios[bound] * found["batch-h100-quantized"]["candidates"]["bf16"]["rows_per_s"]
        run = found["notebook-h100-l4" if count == 1 else "notebook-h100-4gpu"]
        seen, fault = run["training"], run["training"]["fault"]
        repeated = fault["killed"]["step"] - fault["resumed"]["step"] + 1  # after the worker was killed
        passes = seen["epoch"] * (1 + repeated / seen["steps_planned"])
        rest = run["total_s"] - passes * run["data"]["used"]["train"] / one_gpu / seen["workers"]
        rows = run["data"]["read"]["train"]
        seconds = {"training": seen["epoch"] * rows / training, "notebook": passes * rows / training + rest}
        seconds["answers"] = 1e6 / answers
        hours = {work: each / 3600 for work, each in seconds.items()}
        dollars = {work: each * machine["dollars_per_hour"] for work, each in hours.items()}
        rates = {"training": training, "answers": answers}
        machines.append(machine | {"bound": bound, "rates": rates, "hours": hours, "dollars": dollars})
    return machines


def pinned(path: Path) -> dict[str, str]:
    """The versions that a requirements file names with `==`."""
    lines = path.read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)(?:\[[\w,]+\])?==([^\s#]+)", lines, flags=re.MULTILINE))


def context() -> dict[str, Any]:
    """What the templates may use."""

    def read(file: str) -> dict[str, Any]:
        text = (ROOT / file).read_text(encoding="utf-8")
        return json.loads(text) if file.endswith(".json") else yaml.safe_load(text)

    names = sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json"))
    measured = {name: read(f"benchmarks/results/{name}.json") for name in names}
    prices = read("benchmarks/prices.yaml")
    return {
        "measured": measured,
        "prices": prices,
        "costs": costs(measured, prices),
        "run": read("results.json"),
        "cpu": read("profiles/cpu.yaml"),
        "gpu": read("profiles/gpu.yaml"),
        "cpu_recipe": read("lora_sft_ray_cpu.yaml"),
        "gpu_recipe": read("lora_sft_ray.yaml"),
        "viggo": read("tasks/viggo.yaml"),
        "defaults": {name.upper(): field.default for name, field in Settings.model_fields.items()},
        "cpu_versions": pinned(ROOT / "requirements" / "cpu.in"),
        "gpu_versions": pinned(ROOT / "requirements.txt"),
        "memory_gib": MEMORY / 2**30,
    }


def render(template: Path) -> str:
    """The page of a template; jinja2.UndefinedError if the template names what was not measured."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  Markdown, from our own files
    )
    environment.filters |= {f.__name__: f for f in (percent, of, between, duration, number, machine)}
    return environment.get_template(template.name).render(context())


if __name__ == "__main__":
    for template in PAGES:
        template.with_suffix("").write_text(render(template), encoding="utf-8")
