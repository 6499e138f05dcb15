"""The whole notebook and the export with a small model of each family of base models."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests import models
from tests.conftest import ROOT
from tutorial import stage

SMALL = {"DATA": "sample", "TRAIN_ROWS": "4", "VAL_ROWS": "2", "TEST_ROWS": "4", "KILL_WORKER": "0"}
FOUND: dict[str, dict] = {}

pytestmark = pytest.mark.models


@pytest.fixture(scope="module", autouse=True)
def file(request):
    """What was seen goes to the file of `--models-json`, if all families were tried."""
    yield
    path = request.config.getoption("--models-json")
    if path and FOUND.keys() == models.FAMILIES.keys():
        stage.write(ROOT / path, {"stamp": stage.stamp({}), "families": FOUND})


@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_family(family, tmp_path):
    folder = models.make(family, tmp_path / family.replace(" ", "-"))
    project = tmp_path / "project"
    project.mkdir()
    command = ["git", "ls-files", "-z"]
    tracked = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    env = os.environ | SMALL | {"MODEL": str(folder), "RUN_NAME": "family-1", "PROFILE": "cpu"}
    command = [sys.executable, "-m", "tutorial.run"]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads((project / "out" / "results.json").read_text())
    steps, rows = found["training"]["steps"], found["batch"]["rows_out"]
    assert (steps, rows, found["batch"]["rows_failed"]) == (2, found["batch"]["rows_in"], 0)
    command = [sys.executable, "-m", "tutorial.export"]
    export = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert export.returncode == 0, (export.stdout + export.stderr)[-3000:]
    FOUND[family] = {
        "architecture": json.loads((folder / "config.json").read_text())["architectures"][0],
        "chat_template": models.FAMILIES[family][1],
        "steps": steps,
        "answered": rows,
        "served": sum(map(len, found["serving"]["answers"].values())),
        "merged": export.stdout.split("equal the adapter's: ")[1].splitlines()[0],
    }
