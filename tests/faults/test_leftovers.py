"""What a whole run leaves behind, on a machine with an empty HOME and an empty /tmp."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.conftest import SMALL

pytestmark = pytest.mark.faults
# An empty /tmp that no other process sees; what is in it at the end goes to the file $0.
OWN_TMP = 'mount -t tmpfs tmpfs /tmp && "$@"; code=$?; find /tmp -mindepth 1 > "$0"; exit $code'
TINY = SMALL | {"TRAIN_ROWS": "8", "TEST_ROWS": "2", "SHARED_DIR": str(ROOT / ".cache")}


def listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def machine():
    """A folder outside of /tmp with an empty HOME, a copy of the project, and a storage that holds a file."""
    (ROOT / "out").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=ROOT / "out", prefix="machine-"))
    hidden = shutil.ignore_patterns(".*", "out", "images")
    shutil.copytree(ROOT, folder / "project", ignore=hidden)
    for name in ("home", "kept/another-run"):
        (folder / name).mkdir(parents=True)
    (folder / "kept" / "another-run" / "file").write_text("somebody else's")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("clean_up", ["1", "0"])
def test_what_a_run_leaves(machine, clean_up):
    before, project = listed(machine), listed(machine / "project")
    env = os.environ | TINY | {"HOME": str(machine / "home"), "CLEAN_UP": clean_up, "RUN_NAME": "mine"}
    env = {key: value for key, value in env.items() if key not in ("TMPDIR", "RAY_TMPDIR")}
    command = ["unshare", "-m", "sh", "-c", OWN_TMP, str(machine / "tmp-list"), sys.executable]
    done = subprocess.run(
        [*command, "-m", "tutorial.run"],
        cwd=machine / "project",
        env=env | {"STORAGE": str(machine / "kept"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (machine / "tmp-list").read_text().splitlines() == []
    assert listed(machine / "home") == set()
    new = {path for path in listed(machine / "project") - project if not path.startswith((".cache", "out"))}
    assert new == set(), "in the project, only out/ and the folder of caches"
    elsewhere = {path for path in listed(machine) - before if not path.startswith(("project/", "tmp-list"))}
    if clean_up == "1":
        assert elsewhere == set()
    else:
        assert elsewhere
        assert all(path.startswith("kept/mine") for path in elsewhere)
    assert (machine / "kept" / "another-run" / "file").read_text() == "somebody else's"
