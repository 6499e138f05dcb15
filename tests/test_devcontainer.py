"""The development container: its command makes the environment, and registers that environment's kernel."""

import json
import re
import shlex
import shutil
import subprocess
import sys

from tests.conftest import ROOT
from tutorial import machine

CONTAINER = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
COMMAND = CONTAINER["postCreateCommand"]


def test_its_targets_are_in_the_makefile():
    targets = re.findall(r"\bmake (\S+)", COMMAND)
    assert targets
    make = [shutil.which("make"), "--dry-run", "--always-make"]
    subprocess.run([*make, *targets], cwd=ROOT, check=True, capture_output=True)


def test_its_kernel_is_that_of_the_environment(tmp_path):
    """The command's own words, but for the place."""
    environment, install = COMMAND.removeprefix("make ").split("/.ready && ")
    python, *words = shlex.split(install)
    assert python == f"{environment}/bin/python"
    assert CONTAINER["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"].endswith(python)
    words[words.index("--user")] = f"--prefix={tmp_path}"
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    kernel = json.loads((tmp_path / "share/jupyter/kernels/tutorial/kernel.json").read_text())
    assert kernel["argv"][0] == sys.executable


def test_its_machine_has_what_a_run_asks_for():
    needs = CONTAINER["hostRequirements"]
    assert needs["cpus"] >= 2
    assert int(needs["memory"].removesuffix("gb")) * 10**9 >= machine.MEMORY


def test_its_python_is_one_that_the_environment_takes():
    version = re.search(r"python:3\.(\d+)$", CONTAINER["image"])[1]
    made = re.search(r"3\.(\d+) to 3\.(\d+) is needed", (ROOT / "Makefile").read_text())
    assert int(made[1]) <= int(version) <= int(made[2])
