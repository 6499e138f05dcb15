"""Start the service, ask it, and read what it counts."""

import atexit
import secrets
import socket
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
import ray
import requests
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from ray import serve

from tutorial import TutorialError, progress
from tutorial.model import model_id  # noqa: F401  what the cells and clients call the model
from tutorial.score import exact_match

KEY_LENGTH = 16  # characters, at least


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


def keys(given: SecretStr | None) -> list[str]:
    """The keys of `API_KEYS`, separated by commas; one made for this run if none is given.

    Raises:
        TutorialError: one is short. It does not say which: a key stands in no message.
    """
    listed = given.get_secret_value().split(",") if given else []
    found = [key.strip() for key in listed if key.strip()] or [secrets.token_urlsafe(32)]
    if any(len(key) < KEY_LENGTH or not key.isascii() for key in found):
        raise TutorialError(f"API_KEYS: a key has fewer than {KEY_LENGTH} characters, or some beyond ASCII")
    return found


def run(session, app: serve.Application, name: str = "llm") -> None:
    """`serve.run`, with a limit of time, `SERVE_TIMEOUT_S`.

    The application is deleted when this process ends, unless by SIGKILL: on a cluster that was joined it
    would keep its GPU.

    Args:
        session: a `session.Run`, which records how long it took.

    Raises:
        TutorialError: it failed, or does not run in time; with Serve's own reason.
    """
    atexit.register(delete, name)
    serve.run_many([serve.RunTarget(app, name=name)], wait_for_applications_running=False)
    with progress.serving(name):
        ready_s = wait_until_ready(name, session.settings.serve_timeout_s)
    session.results["serving"] = {"ready_s": round(ready_s, 1)}
    print(f"ready after {ready_s:.0f} s")


def delete(name: str) -> None:
    """Delete an application. Serve is shut down too, if it serves nothing else."""
    if ray.is_initialized():
        serve.delete(name)
        if not serve.status().applications:
            serve.shutdown()  # a controller that stays keeps the port and other options of its own


def ask_all(client: OpenAI, model: str, chats: list[list[dict]], **options: Any) -> list[str]:
    """A model's answers to several chats, given by their messages, which are asked at the same time.

    Args:
        client: OpenAI's.
        model: `model` or `model:adapter`.
        chats: the messages of each.
        options: further arguments of a request.
    """

    def ask(messages: list[dict]) -> str:
        reply = client.chat.completions.create(model=model, messages=messages, **options)
        return reply.choices[0].message.content

    with ThreadPoolExecutor(len(chats)) as pool:
        return list(pool.map(ask, chats))


def compare(session, client: OpenAI, models: list[str], chat, rows: list[dict], **options) -> pd.DataFrame:
    """The exact match of several served models: columns model, exact match. `ask_all` has the arguments.

    Args:
        session: a `session.Run`, which records the answers.
        chat: a `prompt.Chat`.
        rows: with `input` and `output`.
    """
    chats, targets = [chat.messages(row) for row in rows], [row["output"] for row in rows]
    answers = {model: ask_all(client, model, chats, **options) for model in models}
    session.results["serving"] |= {"targets": targets, "answers": answers}
    session.lap("online serving")
    found = [(model, exact_match(given, targets)) for model, given in answers.items()]
    return pd.DataFrame(found, columns=["model", "exact match"])


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
