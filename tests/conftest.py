import json
from pathlib import Path

import pytest

from tutorial import cluster, settings

cluster.optimize_serve()  # as README.ipynb's first cell does, before anything imports Ray

from tutorial import model, storage  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def store():
    """A run's prefix on a real S3 server of its own."""
    opened = storage.Storage.open(None, "viggo-1")
    yield opened
    opened.close()


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
