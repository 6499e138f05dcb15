"""Pictures of Ray's dashboard, taken while the notebook runs. From the project's root:

    python -m images.dashboard

Starts a Ray cluster with its dashboard on loopback, runs the notebook on it with the settings of the
environment, and has headless Chromium photograph two pages, each while its stage is at work: the training
workers and the served application. A job's page is not among them: it names the path of its Python. Writes
images/dashboard_*.png.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

from tutorial.settings import ROOT

ADDRESS, DASHBOARD = "127.0.0.1:6399", "http://127.0.0.1:8266"
SIZE = "1300,900"


def state(path: str) -> dict:
    """The answer of one of the dashboard's own addresses."""
    response = requests.get(DASHBOARD + path, timeout=30)
    response.raise_for_status()
    return response.json()


def training() -> str | None:
    """The page of the actors, once two training workers are among them."""
    actors = state("/logical/actors")["data"]["actors"].values()
    workers = [each for each in actors if "RayTrainWorker" in each["actorClass"] and each["state"] == "ALIVE"]
    return "/#/actors" if len(workers) > 1 else None


def serving() -> str | None:
    """The page of the applications, once the service runs."""
    applications = state("/api/serve/applications/")["applications"]
    return "/#/serve" if any(each["status"] == "RUNNING" for each in applications.values()) else None


def photograph(page: str, file: Path) -> None:
    """What Chromium shows of a page of the dashboard after ten of its seconds."""
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--window-size={SIZE}"]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []  # root has none
        flags += [f"--user-data-dir={profile}", "--virtual-time-budget=10000", f"--screenshot={file}"]
        subprocess.run([CHROMIUM, *flags, DASHBOARD + page], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
    if not CHROMIUM:
        sys.exit("chromium is not on PATH: install it to photograph the dashboard")
    ray = Path(sys.executable).with_name("ray")
    host, port = DASHBOARD.removeprefix("http://").split(":")
    head = ["start", "--head", f"--port={ADDRESS.split(':')[1]}", "--num-cpus=8", "--disable-usage-stats"]
    head += ["--include-dashboard=true", f"--dashboard-host={host}", f"--dashboard-port={port}"]
    subprocess.run([ray, *head], check=True, stdout=subprocess.DEVNULL)
    try:
        run = subprocess.Popen(
            [sys.executable, "-m", "tutorial.run"], env=os.environ | {"RAY_ADDRESS": ADDRESS}
        )
        for at_work in (training, serving):
            while (page := at_work()) is None:
                if run.poll() is not None:
                    sys.exit(f"the run ended before its stage {at_work.__name__!r} was seen")
                time.sleep(1)
            photograph(page, ROOT / "images" / f"dashboard_{at_work.__name__}.png")
            print(f"images/dashboard_{at_work.__name__}.png", flush=True)
        sys.exit(run.wait())
    finally:
        subprocess.run([ray, "stop", "--force"], check=True, stdout=subprocess.DEVNULL)
