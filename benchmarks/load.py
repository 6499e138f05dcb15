"""The service under load, on CPU too. From the project's root:

    python -m benchmarks.load

README.ipynb's service is put under load in four ways: (1) `vllm bench serve` at each number of concurrent
requests: requests a second, time to the first token (TTFT) and to the last (total), p50, p95 and p99; (2) one
replica, at most two, under a steady load that ends: replicas and latency over time; (3) one of two replicas
is killed under that load; (4) a new version is rolled out under it. The clients of (2) to (4) are OpenAI's
own, with its ordinary retries. Prints tables and writes JSON.
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
from openai import OpenAI, OpenAIError

from benchmarks import common, serving

MEASURES = ("request_throughput", *(f"p{p}_{kind}_ms" for kind in ("ttft", "e2el") for p in (50, 95, 99)))
TOKENS = 24  # of each answer of the steady load


class Load:
    """Clients that ask `model` without a pause, each its next question when the last one is answered."""

    def __init__(self, url: str, key: str, model: str, clients: int):
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

    def found(self) -> dict[str, Any]:
        """How many requests were answered and lost, and how long an answer took."""
        latency = pd.Series([each["latency_s"] for each in self.answered])
        shares = {f"p{p}_s": float(latency.quantile(p / 100)) for p in (50, 95, 99)}
        return {"answered": len(self.answered), "lost": len(self.failed), "failed": self.failed} | shares


def replicas() -> int:
    """Of the model's server, those that run."""
    from ray import serve

    deployments = serve.status().applications["llm"].deployments
    [server] = [status for name, status in deployments.items() if name.startswith("LLMServer")]
    return server.replica_states.get("RUNNING", 0)


def replica_processes() -> set[int]:
    """The process ids of the model's server, on this machine."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ServeReplica:llm:LLMServer" in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


def settled() -> bool:
    """Whether the version that was deployed last runs alone."""
    from ray import serve

    app = serve.status().applications["llm"]
    return app.status == "RUNNING" and all(each.status == "HEALTHY" for each in app.deployments.values())


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
    server = serving.ray_serve(args, model_path, adapter, {})
    with serving.write_prompts(args, model_path) as prompts, server as service:
        return {"levels": serving.bench(service, prompts, args.each, args.levels, MEASURES)}


def scaling(args: argparse.Namespace, model_path: Path, adapter: Path) -> dict[str, Any]:
    """(2), (3) and (4), one after the other, on one service."""
    auto = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": args.clients / 2}
    auto |= {"upscale_delay_s": 3, "downscale_delay_s": 6, "look_back_period_s": 5, "metrics_interval_s": 1}
    growing = common.profile(args.cpu, model_path, {}, **auto)
    with common.served(growing, adapter, args.port) as (deploy, key):
        service = f"http://127.0.0.1:{args.port}/v1", key, model_path.name
        seen: list[dict[str, float]] = []

        def watch() -> int:
            seen.append({"at_s": time.monotonic() - load.begun, "replicas": replicas()})
            return seen[-1]["replicas"]

        with Load(*service, args.clients) as load:
            up_s = until(lambda: watch() == 2, 300, "a second replica")
            held = time.monotonic() + args.hold_s
            until(lambda: watch() and time.monotonic() > held, args.hold_s + 60, "the end of the load")
        end_s = time.monotonic() - load.begun
        down_s = until(lambda: watch() == 1, 300, "one replica again")
        scaled = load.found() | {"autoscaling_config": auto, "replicas": seen, "latency": load.answered}
        scaled |= {"up_s": up_s, "load_ends_s": end_s, "down_s": down_s}

        # A replica and a version are lost while there are two, as a service has that must not stop.
        two = common.profile(args.cpu, model_path, {}, min_replicas=2, max_replicas=2)
        two.worker_env = growing.worker_env
        deploy(two)
        until(settled, 400, "the new version")
        until(lambda: replicas() == 2, 300, "two replicas")
        with Load(*service, args.clients) as load:
            until(lambda: len(load.answered) >= 2 * args.clients, 60, "answers")
            os.kill(min(replica_processes()), signal.SIGKILL)
            killed_s = time.monotonic() - load.begun
            until(lambda: replicas() < 2, 60, "the loss of a replica")
            back_s = until(lambda: replicas() == 2, 300, "the replica's successor")
        killed = load.found() | {"killed_s": killed_s, "back_s": back_s}

        with Load(*service, args.clients) as load:
            until(lambda: len(load.answered) >= 2 * args.clients, 60, "answers")
            before = replica_processes()
            start = time.monotonic()
            deploy(two, max_tokens=64)
            until(settled, 400, "the new version")
            rollout_s = time.monotonic() - start
            until(lambda: not before & replica_processes(), 60, "the end of the old version")
        rolled = load.found() | {"rollout_s": rollout_s}
    return {"autoscaling": scaled, "killed replica": killed, "rollout": rolled}


def main(argv: list[str] | None = None) -> None:
    """Measure what the command line says."""
    options = common.parser(__doc__, "load")
    options.add_argument("--levels", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="concurrent")
    options.add_argument("--each", type=int, default=6, help="requests for each that is concurrent")
    options.add_argument("--rows", type=int, default=200, help="prompts")
    options.add_argument("--clients", type=int, default=8, help="of the steady load")
    options.add_argument("--hold-s", type=float, default=30, help="of load with two replicas")
    options.add_argument("--port", type=int, default=8000)
    options.set_defaults(engine={})  # as it is in the profile
    args = common.parse(options, None, argv)
    from tutorial import stage

    model_path, adapter = common.prepare("tiny" if args.small else "135m")
    found = {"stamp": stage.stamp(args.machine), "model": model_path.name}
    for part in (levels, scaling):
        found |= common.alone(part, args, model_path, adapter)
        stage.write(args.out, found)
    common.show(pd.DataFrame(found["levels"]), ("concurrency", *MEASURES))
    parts = [{"candidate": part} | found[part] for part in ("autoscaling", "killed replica", "rollout")]
    common.show(pd.DataFrame(parts), ("answered", "lost", "p50_s", "p95_s", "p99_s"))


if __name__ == "__main__":
    main()
