"""Pictures of Ray's dashboard, taken while the notebook runs as a job. From the project's root:

    python -m images.dashboard

Starts a Ray cluster with its dashboard on loopback, submits the notebook to it as a job, with the settings of
the environment, and has headless Chromium photograph four pages, each while its stage is at work: the jobs,
the training workers, Ray Data's operators and the served application. Writes images/dashboard_*.png.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

from tutorial import settings
from tutorial.settings import ROOT

PORT, DASHBOARD, JOB = "6399", "http://127.0.0.1:8266", "notebook"
SIZE = "1300,900"
RUN = ["python", "-m", "tutorial.run"]


def state(path: str) -> dict:
    """The answer of one of the dashboard's own addresses."""
    response = requests.get(DASHBOARD + path, timeout=30)
    response.raise_for_status()
    return response.json()


def job() -> str | None:
    """The page of the jobs, once this one runs."""
    return "/#/jobs" if state(f"/api/jobs/{JOB}")["status"] == "RUNNING" else None


def training() -> str | None:
    """The page of the actors, once two training workers are among them."""
    actors = state("/logical/actors")["data"]["actors"].values()
    workers = [each for each in actors if "RayTrainWorker" in each["actorClass"] and each["state"] == "ALIVE"]
    return "/#/actors" if len(workers) > 1 else None


def batch() -> str | None:
    """The job's own page, which shows the datasets, once some rows are answered."""
    number = state(f"/api/jobs/{JOB}")["job_id"]
    datasets = state(f"/api/data/datasets/{number}")["datasets"]
    working = [each for each in datasets if each["state"] == "RUNNING" and each["progress"] > 0]
    return f"/#/jobs/{JOB}" if any(each["total"] > 1 for each in working) else None


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
    ray, env = Path(sys.executable).with_name("ray"), os.environ | {"RAY_ADDRESS": DASHBOARD}
    host, port = DASHBOARD.removeprefix("http://").split(":")
    head = ["start", "--head", f"--port={PORT}", "--num-cpus=8", "--disable-usage-stats"]
    head += ["--include-dashboard=true", f"--dashboard-host={host}", f"--dashboard-port={port}"]
    given = {
        key: os.environ[key] for name in settings.Settings.model_fields if (key := name.upper()) in os.environ
    }
    given |= {"SHARED_DIR": str(settings.load().shared_folder())}
    submit = ["job", "submit", "--no-wait", "--submission-id", JOB, "--working-dir", str(ROOT)]
    submit += ["--runtime-env-json", json.dumps({"env_vars": given}), "--", *RUN]
    subprocess.run([ray, *head], check=True, stdout=subprocess.DEVNULL)
    try:
        subprocess.run([ray, *submit], check=True, env=env, stdout=subprocess.DEVNULL)
        for at_work in (job, training, batch, serving):
            while (page := at_work()) is None:
                if state(f"/api/jobs/{JOB}")["status"] in ("FAILED", "STOPPED", "SUCCEEDED"):
                    sys.exit(f"the run ended before its stage {at_work.__name__!r} was seen")
                time.sleep(1)
            photograph(page, ROOT / "images" / f"dashboard_{at_work.__name__}.png")
            print(f"images/dashboard_{at_work.__name__}.png", flush=True)
    finally:
        subprocess.run([ray, "stop", "--force"], check=True, stdout=subprocess.DEVNULL)
