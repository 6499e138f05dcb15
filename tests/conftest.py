import json
import os
import time
from pathlib import Path

import boto3
import pytest

from tutorial import cluster, settings

cluster.optimize_serve()  # as README.ipynb's first cell does, before anything imports Ray

from tutorial import model, storage  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def environment_as_it_was():
    """What `.env` brings into the environment stays for a run, and must not stay for the next test."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def store():
    """A run's prefix on a real S3 server of its own."""
    opened = storage.Storage.open(None, "viggo-1")
    yield opened
    opened.close()


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


@pytest.fixture(scope="session")
def model_path():
    return model.resolve(model.PACKAGED, settings.load().shared_folder())


@pytest.fixture(scope="session")
def results():
    """What the notebook wrote when `make test` ran it."""
    path = ROOT / "out" / "results.json"
    assert path.is_file(), "out/results.json is missing: run the notebook first (make test does)"
    return json.loads(path.read_text())


def pytest_addoption(parser):
    parser.addoption("--faults-json", help="where tests/faults writes what it saw")
