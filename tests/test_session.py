"""A run of the notebook, from its first cell on; no Ray cluster is started."""

import json
import os
import subprocess
import sys

from tests.conftest import ROOT
from tutorial import serving

LEFT = """
import time
time.sleep(0.2)
run.lap("set up")
run.lap("set up")
run.lap("data ingestion")
run.profile, run.resources, run._session = run.settings.choose_profile({}), {"CPU": 2.0}, None
run.close()
"""


def cells(*items, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tests.cells", json.dumps(items)],
        env=os.environ | {"PORT": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


WRONG = {
    "API_KEYS=a-short-one": "API_KEYS: a key has fewer than 16 characters, or some beyond ASCII",
    "RUN_NAME=no/name": "RUN_NAME='no/name': ",
    "TASK=none": "TASK=none: No such file; ",
    "STORAGE=ftp://here": "STORAGE=ftp://here: unknown scheme 'ftp'; ",
}
TRY = """
import os
from tutorial import TutorialError
from tutorial.session import Run
for wrong in WRONG:
    name, _, value = wrong.partition("=")
    os.environ[name] = value
    try:
        Run()
    except TutorialError as error:
        print(error)
    del os.environ[name]
"""


def test_a_wrong_setting_is_one_line():
    done = cells(TRY.replace("WRONG", str(list(WRONG))))
    said = done.stdout.splitlines()
    assert len(said) == len(WRONG), done.stderr
    assert [
        line for line, start in zip(said, WRONG.values(), strict=True) if not line.startswith(start)
    ] == []
    assert "a-short-one" not in done.stdout + done.stderr


def test_a_wrong_setting_ends_the_first_cell():
    done = cells("environment", "print('went on')", TASK="none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().splitlines()[-1].startswith("TutorialError: TASK=none: No such file; "), (
        done.stderr
    )


TAKEN = """
import os, socket
from tutorial import TutorialError
taken = socket.create_server(("127.0.0.1", run.settings.port))
try:
    run.port
except TutorialError as error:
    print(error)
os.environ["PORT"] = ""
free = Run()
assert "port" not in vars(free)
print(free.port == free.port > 0)
"""


def test_the_port_is_looked_for_when_the_service_is_about_to_start():
    """Minutes after the first cell, another process may have what was free then."""
    port = str(serving.check_port(None))
    done = cells("environment", TAKEN, PORT=port)
    taken, free = done.stdout.splitlines()
    assert taken.startswith(f"PORT={port}: another process"), done.stderr
    assert free == "True"


def test_what_a_run_leaves_at_its_end(tmp_path):
    results = ROOT / "out" / "results.json"
    done = cells("environment", LEFT, STORAGE=str(tmp_path / "kept"), RUN_NAME="mine", CLEAN_UP="")
    assert done.returncode == 0, done.stderr
    [published] = (tmp_path / "kept").rglob("results.json")
    found = json.loads(published.read_text())
    assert published.relative_to(tmp_path).as_posix() == "kept/mine/results/results.json"
    assert results.read_bytes() == published.read_bytes()
    assert list(found["seconds"]) == ["set up", "data ingestion", "clean up"]
    assert found["seconds"]["set up"] >= 0.2
    assert found["total_s"] == round(sum(found["seconds"].values()))
    assert f"{found['total_s']} s in all" in done.stdout
    done = cells("environment", LEFT, STORAGE=str(tmp_path / "gone"), RUN_NAME="mine", CLEAN_UP="1")
    assert "1 files of this run deleted" in done.stdout
    assert not (tmp_path / "gone").exists()
