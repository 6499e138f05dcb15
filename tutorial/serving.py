"""Start the service, and ask it."""

import atexit
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pandas as pd
import ray
from openai import OpenAI
from pydantic import SecretStr
from ray import serve

from tutorial import TutorialError, cluster, progress
from tutorial.model import model_id  # noqa: F401  what the cells and clients call the model
from tutorial.s3server import free_ports
from tutorial.score import exact_match

KEY_LENGTH = 16  # characters, at least


def check_port(port: int | None, host: str = "127.0.0.1") -> int:
    """The port, or a free one for None; TutorialError if another process listens on it."""
    try:
        with socket.create_server((host, port or free_ports(1)[0])) as probe:
            return probe.getsockname()[1]
    except PermissionError:
        raise TutorialError(f"PORT={port}: not allowed to this user; set PORT above 1023") from None
    except OSError:
        raise TutorialError(f"PORT={port}: another process uses this port; set PORT to a free one") from None


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

    On a cluster that was joined, the application is deleted when this process ends, unless by SIGKILL: it
    would keep its GPU. A cluster of this process ends with it.

    Args:
        session: a `session.Run`, which records how long it took.

    Raises:
        TutorialError: it failed, or does not run in time; with Serve's own reason.
    """
    if cluster.joins():
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


def compare(session, client: OpenAI, models: list[str], chat, rows: list[dict], **options) -> pd.DataFrame:
    """The exact match of several served models: columns model, exact match.

    Args:
        session: a `session.Run`, which records the answers.
        client: OpenAI's.
        models: each `model` or `model:adapter`; it is asked for all rows at the same time.
        chat: a `prompt.Chat`.
        rows: with `input` and `output`.
        options: further arguments of a request.
    """
    chats, targets = [chat.messages(row) for row in rows], [row["output"] for row in rows]
    answers = {}
    with ThreadPoolExecutor(len(chats)) as pool:
        for model in models:
            ask = partial(client.chat.completions.create, model=model, **options)
            replies = pool.map(lambda messages, ask=ask: ask(messages=messages), chats)
            answers[model] = [reply.choices[0].message.content for reply in replies]
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
        failed = status.status in ("DEPLOY_FAILED", "UNHEALTHY")
        if failed or time.monotonic() - start > timeout_s:
            waited = f"is {status.status} after {timeout_s:.0f} s (SERVE_TIMEOUT_S)"
            reasons = [*(each.message for each in status.deployments.values()), status.message]
            said = [text.strip().splitlines()[-1] for text in reasons if text.strip()] or ["no reason given"]
            what = "failed to start" if failed else waited
            raise TutorialError(f"the application {application!r} {what}: {said[0]}")
        time.sleep(0.5)
