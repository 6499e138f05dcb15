"""The service under load, on CPU too. From the project's root:

    python -m benchmarks.load

README.ipynb's serving cell runs, and is put under load in four ways: (1) `vllm bench serve` at each number
of concurrent requests: requests a second, time to the first token (TTFT) and to the last (total), p50, p95
and p99; (2) one replica, at most two, under a steady load that ends: replicas and latency over time; (3) one
of two replicas is killed under that load; (4) a new version is rolled out under it. The clients of (2) to (4)
are OpenAI's own, with its ordinary retries. Prints tables and writes benchmarks/load.json.
"""

import argparse
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from matplotlib import pyplot as plt
from tabulate import tabulate

from benchmarks import common
from benchmarks.serving import bench, prompts
from tutorial import results
from tutorial.look import BLUE, ORANGE, RC, VERMILLION
from tutorial.settings import ROOT

MEASURES = ("request_throughput", *(f"p{p}_{kind}_ms" for kind in ("ttft", "e2el") for p in (50, 95, 99)))
TOKENS = 24  # of each answer of the steady load
PICTURE = ROOT / "images" / "load.svg"


class Load:
    """Clients that ask without a pause, each its next question when the last one is answered.

    Args:
        url: of the service.
        key: that it knows.
        model: to ask for.
        clients: how many.
    """

    def __init__(self, url: str, key: str, model: str, clients: int):
        from openai import OpenAI

        self.client, self.model = OpenAI(base_url=url, api_key=key), model
        self.begun, self.answered, self.failed = time.monotonic(), [], []
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # OpenAI's: not a line for each request
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self) -> "Load":
        self.begun = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        from openai import OpenAIError

        asked = [{"role": "user", "content": "Name a game, and say why it is worth playing."}]
        while not self._over.is_set():
            start = time.monotonic()
            try:
                self.client.chat.completions.create(
                    model=self.model, messages=asked, max_tokens=TOKENS, extra_body={"ignore_eos": True}
                )
            except OpenAIError as error:  # after its retries: this is what is counted
                self.failed.append({"at_s": start - self.begun, "error": str(error)[:200]})
            else:
                now = time.monotonic()
                self.answered.append({"at_s": now - self.begun, "latency_s": now - start})


def draw(found: dict[str, Any], file: Path) -> None:
    """A picture: latency by load on the left; on the right replicas and latency over the time of a load."""
    plt.rcParams.update(RC)
    layout = [["levels", "replicas"], ["levels", "answers"]]
    figure, axes = plt.subplot_mosaic(layout, figsize=(9, 3.6), layout="constrained", height_ratios=(2, 3))
    levels = pd.DataFrame(found["levels"]).set_index("concurrency") / 1000
    for kind, what, color in (("e2el", "whole answer", BLUE), ("ttft", "first token", ORANGE)):
        for share, style in ((50, "o-"), (95, "o--"), (99, "o:")):
            times = levels[f"p{share}_{kind}_ms"]
            axes["levels"].plot(times.index, times, style, color=color, label=f"{what}, p{share}")
    axes["levels"].set(xscale="log", yscale="log", xlabel="concurrent requests", ylabel="seconds")
    axes["levels"].set_ylim(top=10 * levels["p99_e2el_ms"].max())  # room for the legend
    axes["levels"].set_xticks(levels.index, levels.index)
    axes["levels"].minorticks_off()
    axes["levels"].legend(fontsize=8, ncols=2, loc="upper left")
    scaled = found["autoscaling"]
    running, answers = pd.DataFrame(scaled["replicas"]), pd.DataFrame(scaled["latency"])
    over = (0, running["at_s"].max())
    axes["replicas"].step(running["at_s"], running["replicas"], where="post", color=VERMILLION)
    axes["replicas"].set(ylim=(0, 2.5), yticks=[0, 1, 2], xlim=over, ylabel="replicas")
    axes["replicas"].tick_params(labelbottom=False)
    axes["answers"].plot(answers["at_s"], answers["latency_s"], ".", color=BLUE, alpha=0.5)
    axes["answers"].set(
        ylim=(0, None), xlim=over, xlabel="seconds; shaded: load", ylabel="an answer, seconds"
    )
    for name in ("replicas", "answers"):
        axes[name].axvspan(0, scaled["load_ends_s"], color=ORANGE, alpha=0.15)
    for each in axes.values():
        each.grid()
    figure.savefig(file, metadata={"Date": None})


def replicas() -> int:
    """Of the model's server, those that run."""
    from ray import serve

    deployments = serve.status().applications["llm"].deployments
    [server] = [status for name, status in deployments.items() if name.startswith("LLMServer")]
    return server.replica_states.get("RUNNING", 0)


def until(reached: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Wait; the seconds that it took."""
    start = time.monotonic()
    while not reached():
        if time.monotonic() - start > timeout_s:
            raise RuntimeError(f"{what}: not after {timeout_s:g} s")
        time.sleep(0.5)
    return time.monotonic() - start


def levels(args: argparse.Namespace, model_path: Path, adapter: Path) -> dict[str, Any]:
    """(1) What `vllm bench serve` finds."""
    profile = _profile(args, model_path, {"min_replicas": 1, "max_replicas": 1})
    with common.served(profile, adapter, common.engine_kwargs(profile), port=args.port) as names:
        os.environ["OPENAI_API_KEY"] = names["api_keys"][0]  # where vLLM's client looks for it
        name = f"{model_path.name}:{common.ADAPTER}"
        with prompts(args, model_path) as path:
            url = f"http://127.0.0.1:{args.port}"
            return {"levels": common.alone(bench, url, name, model_path, path, args, MEASURES)}


def scaling(args: argparse.Namespace, model_path: Path, adapter: Path) -> dict[str, Any]:
    """(2), (3) and (4), one after the other, on one service."""

    auto = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": args.clients / 2,
        "upscale_delay_s": 3,
        "downscale_delay_s": 6,
        "look_back_period_s": 5,
        "metrics_interval_s": 1,
    }
    profile = _profile(args, model_path, auto)
    with common.served(profile, adapter, common.engine_kwargs(profile), port=args.port) as names:
        service = f"http://127.0.0.1:{args.port}/v1", names["api_keys"][0], model_path.name

        seen: list[dict[str, float]] = []
        over = threading.Event()

        def watch(begun: float) -> None:
            while not over.is_set():
                seen.append({"at_s": time.monotonic() - begun, "replicas": replicas()})
                over.wait(0.5)

        with Load(*service, args.clients) as load:
            watcher = threading.Thread(target=watch, args=[load.begun], daemon=True)
            watcher.start()
            up_s = until(lambda: replicas() == 2, 300, "a second replica")
            time.sleep(args.hold_s)
        end_s = time.monotonic() - load.begun
        down_s = until(lambda: replicas() == 1, 300, "one replica again")
        time.sleep(2)
        over.set()
        watcher.join()
        scaled = _found(load) | {
            "autoscaling_config": auto,
            "up_s": up_s,
            "load_ends_s": end_s,
            "down_s": down_s,
            "replicas": seen,
            "latency": load.answered,
        }

        # A replica and a version are lost while there are two, as a service has that must not stop.
        profile.serving["deployment_config"]["autoscaling_config"] = {"min_replicas": 2, "max_replicas": 2}
        _deploy(names)
        until(lambda: replicas() == 2, 300, "two replicas")
        with Load(*service, args.clients) as load:
            until(lambda: len(load.answered) >= 2 * args.clients, 60, "answers")
            os.kill(min(_replica_processes()), signal.SIGKILL)
            killed_s = time.monotonic() - load.begun
            until(lambda: replicas() < 2, 60, "the loss of a replica")
            back_s = until(lambda: replicas() == 2, 300, "the replica's successor")
        killed = _found(load) | {"killed_s": killed_s, "back_s": back_s}

        with Load(*service, args.clients) as load:
            until(lambda: len(load.answered) >= 2 * args.clients, 60, "answers")
            before = _replica_processes()
            names["engine_kwargs"] = names["engine_kwargs"] | {
                "override_generation_config": {"max_new_tokens": 64}
            }
            rollout_s = _deploy(names)
            until(lambda: not before & _replica_processes(), 60, "the end of the old version")
        rolled = _found(load) | {"rollout_s": rollout_s}
    return {"autoscaling": scaled, "killed replica": killed, "rollout": rolled}


def _deploy(names: dict[str, Any]) -> float:
    """Run the serving cell again among its names; the seconds until the new version runs alone."""
    from ray import serve

    source = common.cell("app = endpoint.build(").replace("serve.start(", "dict(")
    start = time.monotonic()
    common.execute(source, names)

    def settled() -> bool:
        status = serve.status().applications["llm"]
        return status.status == "RUNNING" and all(d.status == "HEALTHY" for d in status.deployments.values())

    until(settled, 400, "the new version")
    return time.monotonic() - start


def _replica_processes() -> set[int]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ServeReplica:llm:LLMServer" in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


def _found(load: Load) -> dict[str, Any]:
    latency = pd.Series([each["latency_s"] for each in load.answered])
    shares = {f"p{p}_s": float(latency.quantile(p / 100)) for p in (50, 95, 99)}
    return {"answered": len(load.answered), "lost": len(load.failed), "failed": load.failed} | shares


def _profile(args: argparse.Namespace, model_path: Path, autoscaling: dict[str, Any]):
    profile = common.profile(args, model_path, {})
    profile.serving["deployment_config"]["autoscaling_config"] = autoscaling
    return profile


def main() -> None:
    """Measure what the command line says."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--small", action="store_true", help="a tiny model with random weights")
    options.add_argument("--data", help="DATA, as in .env.example; not set: the task's embedded sample")
    options.add_argument(
        "--levels", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="concurrent requests"
    )
    options.add_argument("--each", type=int, default=6, help="requests for each that is concurrent")
    options.add_argument("--rows", type=int, default=200, help="prompts")
    options.add_argument("--clients", type=int, default=8, help="of the steady load")
    options.add_argument("--hold-s", type=float, default=30, help="of load with two replicas")
    options.add_argument("--port", type=int, default=8000)
    options.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options.add_argument("--picture", type=Path, help=f"for the page's: {PICTURE.relative_to(ROOT)}")
    args = options.parse_args()

    import torch

    model_path, adapter = common.prepare("tiny" if args.small else "135m")
    args.small |= not torch.cuda.is_available()  # the cpu profile
    found = {"stamp": results.stamp(common.alone(common.machine)), "model": model_path.name}
    for part in (levels, scaling):
        found |= common.alone(part, args, model_path, adapter)
        results.write(args.out, found)
    print(tabulate(found["levels"], headers="keys", tablefmt="github", floatfmt=".4g"))
    summary = [
        {"under load": name, "answered": part["answered"], "failed": len(part["failed"])}
        | {key: part[key] for key in ("p50_s", "p95_s", "p99_s")}
        for name in ("autoscaling", "killed replica", "rollout")
        if (part := found[name])
    ]
    print(tabulate(summary, headers="keys", tablefmt="github", floatfmt=".4g"))
    if args.picture:
        draw(found, args.picture)


if __name__ == "__main__":
    main()
