"""Pictures of Ray's dashboard, taken while the notebook runs as a job. From the project's root:

    make .venv/.ready .venv-docs/.ready && .venv-docs/bin/python -m images.dashboard

Starts a Ray cluster with its dashboard on loopback, submits the notebook to it as a job, with the settings of
the environment, and has headless Chromium photograph four pages, each while its stage is at work: the jobs,
the training workers, Ray Data's datasets and the served application. Writes images/dashboard_*.png.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import requests
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PORT, DASHBOARD, JOB = "6399", "http://127.0.0.1:8266", "notebook"
WIDTH, HEIGHT = 1300, {"job": 540, "training": 900, "batch": 900, "serving": 700}
RUN = ["python", "-m", "tutorial.run"]
CLICK = {"batch": "Ray Data Overview"}  # what a page shows only when asked to


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


def photograph(chromium: str, stage: str, page: str) -> None:
    """What Chromium shows of a page of the dashboard, some seconds after it was opened."""
    with sync_playwright() as player:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has none
        browser = player.chromium.launch(executable_path=chromium, args=flags)
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT[stage]})
        tab.goto(DASHBOARD + page)
        if stage in CLICK:
            tab.get_by_text(CLICK[stage]).click()
        tab.wait_for_timeout(5000)
        tab.screenshot(path=ROOT / "images" / f"dashboard_{stage}.png")
        browser.close()


def main() -> None:
    """Start the cluster and the job, photograph, stop."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        sys.exit("chromium is not on PATH: install it to photograph the dashboard")
    ray = ROOT / ".venv" / "bin" / "ray"
    # What the cluster is started with its jobs have too: no setting, and no key, stands in a command line.
    env = (
        {"SHARED_DIR": str(ROOT / ".cache")}
        | os.environ
        | {"PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}
    )
    host, port = DASHBOARD.removeprefix("http://").split(":")
    head = [ray, "start", "--head", f"--port={PORT}", "--num-cpus=8", "--disable-usage-stats"]
    head += ["--include-dashboard=true", f"--dashboard-host={host}", f"--dashboard-port={port}"]
    submit = [ray, "job", "submit", "--address", DASHBOARD, "--no-wait", "--submission-id", JOB]
    submit += ["--working-dir", str(ROOT)]
    subprocess.run(head, check=True, env=env, stdout=subprocess.DEVNULL)
    try:
        subprocess.run([*submit, "--", *RUN], check=True, env=env, stdout=subprocess.DEVNULL)
        for at_work in (job, training, batch, serving):
            while (page := at_work()) is None:
                if state(f"/api/jobs/{JOB}")["status"] in ("FAILED", "STOPPED", "SUCCEEDED"):
                    sys.exit(f"the run ended before its stage {at_work.__name__!r} was seen")
                time.sleep(1)
            photograph(chromium, at_work.__name__, page)
            print(f"images/dashboard_{at_work.__name__}.png", flush=True)
    finally:
        subprocess.run([ray, "stop"], check=True, env=env, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
