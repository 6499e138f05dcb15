import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3
import nbformat
import psutil
import pytest

from tutorial import cluster, settings

cluster.optimize_ray()  # as README.ipynb's first cell does, before anything imports Ray
if "PYTEST_XDIST_WORKER" in os.environ:  # other tests run beside: two threads that wait for each other crawl
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from tutorial import model, storage  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
# The notebook's: what vLLM found out about a class of models takes a process and ten seconds.
os.environ.setdefault("VLLM_CACHE_ROOT", str(ROOT / ".cache" / "vllm_cache_root"))
SOON_S = (
    60  # an error that comes after seconds, on a machine that does much else; those that wait take minutes
)


@contextmanager
def suspended(pid):
    """While this process stands still. After SIGSTOP its threads go on until one of them has had a core."""
    process, end = psutil.Process(pid), time.monotonic() + SOON_S
    process.suspend()
    try:
        while not _stands(pid):
            assert time.monotonic() < end, f"process {pid} does not stop"
            time.sleep(0.01)
        yield
    finally:
        process.resume()


def _stands(pid):
    states = set()
    with suppress(FileNotFoundError):  # a thread has just ended
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            states.add(stat.read_text().rpartition(")")[2].split()[0])
        return states == {"T"}


@pytest.fixture(autouse=True)
def environment_as_it_was():
    """What `.env` brings into the environment stays for a run, and must not stay for the next test."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def started_store():
    opened = storage.Storage.open(None, "viggo-1")
    yield opened
    opened.close()


@pytest.fixture
def store(started_store):
    """A run's prefix on a real S3 server of its own, where no earlier test left a file."""
    yield started_store
    started_store.clean_up()


@pytest.fixture
def user(store, monkeypatch):
    """A user whose own S3 is `store`'s server, as the environment says; boto3's resource of it."""
    for name, value in (store.server.keys | store.server.address()).items():
        monkeypatch.setenv(name, value)
    return boto3.Session().resource("s3")


@pytest.fixture
def bucket(user):
    """The name of a new, empty bucket of the user's."""
    name = f"bucket-{time.time_ns()}"
    user.create_bucket(Bucket=name)
    return name


SPLITS = {"train": 16, "val": 4, "test": 6}
SCORES = {
    "exact match": {"value": 0.5, "low": 0.118, "high": 0.882, "targets": 6.0},
    "token F1": {"value": 0.625, "low": None, "high": None, "targets": None},
}
MEASURED = {  # what results.json holds, in short
    "profile": "cpu",
    "task": "mine",
    "model": "SmolLM2-135M-Instruct",
    "data": {"file": dict.fromkeys(SPLITS, "mine.csv"), "used": SPLITS},
    "batch": {"kind": "text", "scores": {"base model": SCORES, "fine-tuned": SCORES}},
}


@pytest.fixture
def project(tmp_path):
    """A project with the same code, in a folder whose name has a space: runs a notebook of its own, which may
    take measured.json for its results."""
    root = tmp_path / "my repo"
    root.mkdir()
    (root / "out").mkdir()
    (root / "measured.json").write_text(json.dumps(MEASURED))
    shutil.copytree(ROOT / "tutorial", root / "tutorial", ignore=shutil.ignore_patterns("__pycache__"))

    def write(*sources):
        cells = [nbformat.v4.new_markdown_cell("## 1. One"), nbformat.v4.new_markdown_cell("## Two")]
        cells += [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "README.ipynb")

    def main(*sources, **environment):
        write(*sources)
        env = {key: value for key, value in (os.environ | environment).items() if value is not None}
        return subprocess.run(main.command, cwd=root, env=env, capture_output=True, text=True, check=False)

    main.root, main.write, main.command = root, write, [sys.executable, "-m", "tutorial.run"]
    return main


@pytest.fixture(scope="session")
def model_path():
    return model.resolve(model.PACKAGED, settings.load().shared_folder())


@pytest.fixture(scope="session")
def results():
    """What the notebook wrote when `make test` ran it."""
    path = ROOT / "out" / "tested.json"
    assert path.is_file(), "out/tested.json is missing: run the notebook first (make test does)"
    return json.loads(path.read_text())


def pytest_addoption(parser):
    parser.addoption("--faults-json", help="where tests/faults writes what it saw")
    parser.addoption("--models-json", help="where tests/test_families.py writes what it saw")
