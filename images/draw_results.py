"""The plots of docs/*.md, drawn from benchmarks/results/ and results.json. From the project's root:

    python -m images.draw_results

tutorial/plots.mplstyle says what each colour means.
"""

import json
import sys
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from docs.render import interval
from tutorial.plots import BLUE, GREY, INK, STYLE

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks" / "results"
FOLDER = ROOT / "images" / "results"
WIDTH = 6  # inches; text stays readable when a phone scales the plot down
SIZES = {"font.size": 11, "axes.titlesize": 11, "axes.axisbelow": True}
LOOK = ["default", STYLE, SIZES]
SERVERS = {  # candidates of serving-h200.json: label, marker, share of blue
    "vllm serve": ("vLLM's own server", "s", 0),
    "first piece at once, 4 ingresses, throughput": ("this service", "o", 1),
    "Ray's defaults": ("Ray's defaults", "^", 0.6),
}
TRAINING = {  # candidates of train-h200.json: label, colour
    "ancestor": ("single rows,\ngradient checkpointing", GREY),
    "21 GiB, packed 1 of 1024, liger": ("lora_sft_ray.yaml", BLUE),
    "21 GiB, packed 4, checkpoints, liger, no casts": ("4 packs of 2,048,\ngradient checkpointing", GREY),
    "packed 2, liger, no casts": ("2 packs of 2,048", GREY),
    "packed 8, liger, no casts": ("8 packs of 2,048", GREY),
}
STAGES = {  # label: keys of results.json's `seconds`, share of blue. What no stage names is "rest"
    "set up": (("set up", "data ingestion"), 0.25),
    "fine-tuning": (("fine-tuning",), 1),
    "batch": (("batch inference",), 0.65),
    "serving": (("online serving",), 0.35),
}
RUNS = {"2 CPU cores": None, "1 H200": "notebook-h200-1gpu", "2 H200": "notebook-h200-2gpu"}
RUNS |= {"4 H100, held to\nan L4's memory": "notebook-h100-4gpu"}


def read(name: str | None) -> dict:
    """The JSON of a benchmark, or results.json for None."""
    path = MEASURED / f"{name}.json" if name else ROOT / "results.json"
    return json.loads(path.read_text(encoding="utf-8"))


def blue(share: float) -> tuple[float, ...]:
    """Blue, mixed with white."""
    return tuple(1 - share * (1 - part) for part in plt.matplotlib.colors.to_rgb(BLUE))


def figure(height: float, columns: int = 1, **options) -> tuple[Figure, list]:
    """A figure and its axes, side by side."""
    made, axes = plt.subplots(1, columns, figsize=(WIDTH, height), layout="constrained", **options)
    return made, list(axes) if columns > 1 else [axes]


def training_speed() -> Figure:
    """Rows a second of each recipe on one H200, and the memory that it takes."""
    found = read("train-h200")["candidates"]
    recipes = [found[name] for name in TRAINING]
    labels, colors = zip(*TRAINING.values(), strict=True)
    made, [axes] = figure(3.1)
    drawn = axes.barh(labels, [recipe["samples_per_s"] for recipe in recipes], color=colors, height=0.6)
    told = [f"{recipe['samples_per_s']:.0f} ({recipe['device_gib']:.0f} GiB)" for recipe in recipes]
    axes.bar_label(drawn, told, padding=4)
    axes.invert_yaxis()
    axes.set(xlabel="training rows per second (GPU memory)", xlim=(0, 1.35 * axes.dataLim.x1))
    axes.tick_params(axis="y", length=0)
    return made


def serving_speed() -> Figure:
    """First token and throughput against the number of concurrent requests, of three servers."""
    found, again = (read(name)["candidates"] for name in ("serving-h200", "serving-h200-ingresses"))
    made, panels = figure(3, 2)
    measures = {
        "p50_ttft_ms": ("time to first token, p50, ms", (20, 50, 100, 200, 500)),
        "request_throughput": ("requests per second", (5, 10, 20, 50, 100, 200)),
    }
    for axes, (measure, (title, marks)) in zip(panels, measures.items(), strict=True):
        for name, (label, marker, share) in SERVERS.items():
            color, levels = blue(share) if share else GREY, found[name]["levels"]
            at, values = ([level[key] for level in levels] for key in ("concurrency", measure))
            axes.plot(at, values, marker=marker, color=color, label=label)
            if "levels" in again.get(name, ()):  # measured twice at the last level
                axes.plot(at[-1:] * 2, [values[-1], again[name]["levels"][-1][measure]], "_-", color=color)
        axes.set(title=title, xlabel="concurrent requests", xscale="log", yscale="log")
        axes.set_xticks(at, at)
        axes.set_yticks(marks, marks)
        axes.minorticks_off()
        axes.grid()
    axes.legend(loc="lower right", fontsize=10, handlelength=1.2, borderpad=0)
    return made


def load() -> Figure:
    """Times of the service on two CPU cores against the number of concurrent requests."""
    levels = read("load-cpu")["levels"]
    made, panels = figure(3, 2)
    at = [level["concurrency"] for level in levels]
    for axes, kind, title in zip(
        panels, ("ttft", "e2el"), ("first token, seconds", "whole answer, seconds"), strict=True
    ):
        times = {share: [level[f"p{share}_{kind}_ms"] / 1000 for level in levels] for share in (50, 95)}
        axes.plot(at, times[50], "o-", color=BLUE)
        axes.fill_between(at, times[50], times[95], color=BLUE, alpha=0.2, linewidth=0)
        axes.annotate("p50", (at[2], times[50][2]), (0, -16), textcoords="offset points", ha="center")
        axes.annotate("p95", (at[3], times[95][3]), (-4, 4), textcoords="offset points", ha="right")
        axes.set(title=title, xlabel="concurrent requests", xscale="log", ylim=(0, None))
        axes.set_xticks(at, at)
        axes.minorticks_off()
        axes.grid()
    return made


def autoscaling() -> Figure:
    """Replicas and latencies over the time of a load."""
    found = read("load-cpu")["autoscaling"]
    made, (above, below) = plt.subplots(
        2, 1, figsize=(WIDTH, 3.6), layout="constrained", sharex=True, height_ratios=(2, 3)
    )
    above.step(*zip(*((at["at_s"], at["replicas"]) for at in found["replicas"]), strict=True), color=BLUE)
    above.set(title="replicas", ylim=(0, 2.4), yticks=[0, 1, 2])
    below.plot(
        *zip(*((a["at_s"], a["latency_s"]) for a in found["latency"]), strict=True),
        "o",
        color=BLUE,
        alpha=0.4,
    )
    below.set(title="time of each answer, seconds", xlabel="seconds since the first request", ylim=(0, None))
    for axes in (above, below):
        axes.axvline(found["load_ends_s"], color=GREY, linestyle="--")
        axes.grid()
    below.annotate("load ends ", (found["load_ends_s"], below.get_ylim()[1]), va="top", ha="right", color=INK)
    return made


def run_time() -> Figure:
    """The minutes of the whole notebook, by stage, on four machines."""
    made, [axes] = figure(2.9)
    for row, name in enumerate(RUNS.values()):
        seconds, left = read(name)["seconds"], 0.0
        parts = {label: sum(map(seconds.pop, keys)) / 60 for label, (keys, _) in STAGES.items()}
        parts["rest"] = sum(seconds.values()) / 60
        for label, minutes in parts.items():
            share = STAGES.get(label, ((), 0.12))[1]
            drawn = axes.barh(row, minutes, left=left, color=blue(share), height=0.6, label=label)
            left += minutes
            if minutes > 0.9:
                color = "white" if share > 0.5 else INK
                axes.bar_label(drawn, [f"{minutes:.0f}"], label_type="center", color=color)
        axes.text(left + 0.15, row, f"{left:.0f} min", va="center")
    axes.set_yticks(range(len(RUNS)), RUNS)
    axes.invert_yaxis()
    axes.set(xlabel="minutes")
    axes.set_xlim(right=1.14 * axes.dataLim.x1)
    axes.tick_params(axis="y", length=0)
    handles, labels = axes.get_legend_handles_labels()
    kinds = len(STAGES) + 1
    made.legend(handles[:kinds], labels[:kinds], loc="outside upper center", ncols=kinds, columnspacing=1)
    return made


def training_rows() -> Figure:
    """Exact match against the number of training rows: ViGGO on a GPU, synthetic rows on two CPU cores."""
    curves = read("curve-cpu-h200")
    seeds, meanings = read("accuracy-h200"), read("meanings-viggo")["test"]["meanings"]
    viggo = [point for point in curves["gpu, viggo"]["points"] if point["train_rows"] <= 2000]
    everything = seeds["candidates"]["seed 0"]["rows"]["train"]
    made, panels = figure(3, 2, sharey=True)
    titles = ("ViGGO, one H200", "synthetic rows, two CPU cores")
    for axes, title, points in zip(
        panels, titles, (viggo, curves["cpu, viggo, sample"]["points"]), strict=True
    ):
        at, values = ([point[key] for point in points] for key in ("train_rows", "value"))
        if points is viggo:
            at, values = [*at, everything], [*values, seeds["test"]["mean"]]
            edges = [interval(value, meanings) for value in values]
            axes.fill_between(
                at,
                *([100 * edge for edge in side] for side in zip(*edges, strict=True)),
                color=BLUE,
                alpha=0.2,
                linewidth=0,
            )
        axes.plot(at, [100 * value for value in values], "o-", color=BLUE)
        axes.set(title=title, xlabel="training rows", xscale="log", ylim=(-4, 104))
        axes.set_xticks(at, [f"{rows:,}" for rows in at], fontsize=9)
        axes.minorticks_off()
        axes.grid()
    panels[0].set_ylabel("exact match, percent")
    return made


def by_function() -> Figure:
    """Exact match of the fine-tuned model for each function of ViGGO's test set, with 95% intervals."""
    found = read("notebook-h200-1gpu")["batch"]["by_function"]["fine-tuned"]
    order = sorted(found, key=lambda name: found[name]["exact match"])
    percent = [100 * found[name]["exact match"] for name in order]
    meanings = read("meanings-viggo")["by_function"]
    edges = [interval(found[name]["exact match"], meanings[name]["meanings"]) for name in order]
    spread = [
        [abs(value - 100 * edge[side]) for value, edge in zip(percent, edges, strict=True)] for side in (0, 1)
    ]
    made, [axes] = figure(3.6)
    axes.errorbar(percent, range(len(order)), xerr=spread, fmt="o", color=BLUE, capsize=3)
    axes.set_yticks(range(len(order)), [f"{name} ({found[name]['rows']})" for name in order])
    axes.set(xlabel="exact match, percent", xlim=(55, 101))
    axes.grid(axis="x")
    return made


PLOTS = (
    training_speed,
    serving_speed,
    load,
    autoscaling,
    run_time,
    training_rows,
    by_function,
)


@plt.style.context(LOOK)
def main(folder: Path = FOLDER) -> None:
    """Draw each plot as an SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:
        plot().savefig(folder / f"{plot.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
