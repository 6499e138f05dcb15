"""Start the service, wait until it answers, and read what it counts."""

import atexit
import socket
import time
from collections import defaultdict

import ray
import requests
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from tutorial import TutorialError
from tutorial.model import model_id  # noqa: F401  what the cells and clients call the model


def free_port() -> int:
    """A port of loopback that no process listens on now."""
    return check_port(None)


def check_port(port: int | None, host: str = "127.0.0.1") -> int:
    """The port, or a free one for None; TutorialError if another process listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except PermissionError:
            raise TutorialError(f"PORT={port}: not allowed to this user; set PORT above 1023") from None
        except OSError:
            raise TutorialError(
                f"PORT={port}: another process uses this port; set PORT to a free one"
            ) from None
        return probe.getsockname()[1]


def delete_at_exit(application: str) -> None:
    """Delete the application when this process ends, unless by SIGKILL: on a cluster that was joined it would
    keep its GPU. Serve is shut down too, if it serves nothing else."""

    def delete() -> None:
        if ray.is_initialized():
            serve.delete(application)
            if not serve.status().applications:
                serve.shutdown()  # a controller that stays keeps the port and other options of its own

    atexit.register(delete)


def wait_until_ready(application: str, timeout_s: float) -> float:
    """Return once the application runs; the seconds that it took.

    Raises:
        TutorialError: it failed, or does not run after `timeout_s` seconds; with Serve's own reason.
    """
    start = time.monotonic()
    while True:
        status = serve.status().applications[application]
        if status.status == "RUNNING":
            return time.monotonic() - start
        reasons = [d.message for d in status.deployments.values() if d.message] + [status.message]
        reason = next((r.strip().splitlines()[-1] for r in reasons if r.strip()), "no reason given")
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise TutorialError(f"the application {application!r} failed to start: {reason}")
        if time.monotonic() - start > timeout_s:
            raise TutorialError(
                f"the application {application!r} is {status.status} after {timeout_s:.0f} s "
                f"(SERVE_TIMEOUT_S): {reason}"
            )
        time.sleep(0.5)


def counters(names: list[str], nodes: list[dict], timeout_s: float = 60) -> dict[str, float]:
    """`scrape`, repeated until all names are there, as processes report every few seconds; NaN for a name
    that is missing after `timeout_s`."""
    start = time.monotonic()
    while set(names) - set(found := scrape(nodes)) and time.monotonic() - start < timeout_s:
        time.sleep(1)
    return dict.fromkeys(names, float("nan")) | found


def scrape(nodes: list[dict]) -> dict[str, float]:
    """Prometheus samples by name, each summed over the machines and processes that report it.

    vLLM's names begin with `ray_vllm_`, Ray Serve's with `ray_serve_`; a histogram has `_sum` and `_count`,
    without its buckets. Of vLLM's engines those that serve are counted, not the batch stage's. A machine that
    does not answer is named in a line, and left out.

    Args:
        nodes: `ray.nodes()`.
    """
    found: dict[str, float] = defaultdict(float)
    for node in nodes:
        if not node["Alive"]:
            continue
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        try:
            answer = requests.get(url, timeout=10)
            answer.raise_for_status()
        except requests.RequestException as error:
            print(f"no metrics of {url}: {type(error).__name__}")
            continue
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                served = sample.labels.get("ReplicaId") != ""  # vLLM's label, empty outside Ray Serve
                if served and not sample.name.endswith("_bucket"):
                    found[sample.name] += sample.value
    return dict(found)
