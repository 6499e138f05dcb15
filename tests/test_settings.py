import os
import re
import subprocess
import sys

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.conftest import ROOT
from tutorial import TutorialError, settings

NO_FILE = ROOT / "no.env"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in [*settings.Settings.model_fields, "anyscale_artifact_storage"]:
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_cluster_chooses_the_profile():
    assert settings.Settings(_env_file=None).choose_profile({"CPU": 8.0}).name == "cpu"
    assert settings.Settings(_env_file=None).choose_profile({"CPU": 8.0, "GPU": 4.0}).name == "gpu"
    assert settings.Settings(_env_file=None, profile="cpu").choose_profile({"GPU": 4.0}).name == "cpu"


def test_settings_lie_over_the_profile(monkeypatch):
    monkeypatch.setenv("TRAIN_ROWS", "7")
    monkeypatch.setenv("MODEL", "some/model")
    monkeypatch.setenv("WORKERS", "1")
    profile = settings.load(NO_FILE).choose_profile({"GPU": 1.0})
    assert (profile.rows.train, profile.rows.test) == (7, None)
    assert profile.model == "some/model"
    assert profile.processor["concurrency"] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("PROFILE", "tpu"), ("TRAIN_ROWS", "0"), ("TEST_ROWS", "many"), ("PORT", "99999"), ("RUN_NAME", "../x")],
)
def test_a_wrong_value_is_named_in_one_line(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(TutorialError, match=f"^{name}='{re.escape(value)}'") as error:
        settings.load(NO_FILE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "prefix"), [("viggo", "viggo"), ("my/Own Task_2.yaml", "own-task-2"), ("%.yaml", "task")]
)
def test_a_run_is_named_after_its_task(monkeypatch, name, prefix):
    monkeypatch.setenv("TASK", name)
    assert re.fullmatch(rf"{prefix}-\d{{8}}-\d{{6}}", settings.load(NO_FILE).run_name)
    monkeypatch.setenv("RUN_NAME", "mine")
    assert settings.load(NO_FILE).run_name == "mine"


def test_the_gpu_profile_is_four_l4():
    profile = settings.Settings(_env_file=None, profile="gpu").choose_profile({})
    assert profile.model == "Qwen/Qwen2.5-7B-Instruct"
    assert profile.processor["concurrency"] == 4


def test_anyscale_defaults(monkeypatch):
    monkeypatch.setenv("ANYSCALE_ARTIFACT_STORAGE", "s3://theirs/artifacts")
    assert settings.load(NO_FILE).storage_uri() == "s3://theirs/artifacts"
    monkeypatch.setenv("STORAGE", "gs://mine/artifacts")
    assert settings.load(NO_FILE).storage_uri() == "gs://mine/artifacts"


def test_an_edited_env_file_counts_in_the_same_process(tmp_path):
    env = tmp_path / ".env"
    env.write_text("PORT=8123\n")
    assert settings.load(env).port == 8123
    env.write_text("PORT=8124\n")
    assert settings.load(env).port == 8124


@pytest.fixture
def two_machines():
    """A Ray cluster of two nodes, each with processes of its own, on this machine."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


def test_several_machines_see_a_folder_that_is_set(two_machines, monkeypatch, tmp_path):
    monkeypatch.setenv("SHARED_DIR", str(tmp_path))
    assert settings.load(NO_FILE).shared_folder() == tmp_path
    assert settings.load(NO_FILE).all_see_shared_folder(ray.nodes())
    monkeypatch.delenv("SHARED_DIR")
    assert not settings.load(NO_FILE).all_see_shared_folder(ray.nodes())
    assert not settings.load(NO_FILE).all_see_shared_folder(ray.nodes()[:1]), "more machines may come"
    with monkeypatch.context() as alone:  # until the cluster ends, which looks there too
        alone.delenv("RAY_ADDRESS", raising=False)
        alone.setenv("RAY_TMPDIR", str(tmp_path))  # no cluster was started there
        assert settings.load(NO_FILE).all_see_shared_folder(ray.nodes()[:1])


def test_more_workers_than_the_machine_has_room_for(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # no cluster was started there
    settings.check_fits({"CPU": 8.0}, 2, {"CPU": 1})
    with pytest.raises(TutorialError, match="4 workers with 1 GPU each need 4 GPU, this machine has 1; set"):
        settings.check_fits({"CPU": 16.0, "GPU": 1.0}, 4, {"CPU": 4, "GPU": 1})
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # a cluster that is joined may grow
    settings.check_fits({"CPU": 1.0}, 4, {"CPU": 4, "GPU": 1})


def test_a_run_that_goes_on_has_a_name(monkeypatch):
    monkeypatch.setenv("RESUME", "1")
    monkeypatch.setenv("API_KEYS", "a-key-of-some-customer")
    with pytest.raises(TutorialError, match=r"^RESUME=1: set RUN_NAME to the run to go on with$"):
        settings.load(NO_FILE)
    monkeypatch.setenv("RUN_NAME", "viggo-1")
    assert settings.load(NO_FILE).resume


def test_a_submitted_job_brings_its_own_code(monkeypatch):
    assert settings.runtime_env({})["working_dir"] == str(ROOT)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert settings.runtime_env({"A": "1"}) == {"env_vars": {"A": "1"}}


def test_env_example_names_every_setting():
    named = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    known = {name.upper() for name in settings.Settings.model_fields}
    assert known <= named
    passed_on = {"HF_TOKEN", "HF_HUB_ENABLE_HF_TRANSFER", "HF_XET_HIGH_PERFORMANCE"}
    passed_on |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"}
    assert named - known == passed_on


@pytest.mark.parametrize("given", [None, "0"])
def test_ray_serve_saves_threads_unless_told_not_to(given, tmp_path):
    switch = "RAY_SERVE_THROUGHPUT_OPTIMIZED"
    source = """
from tutorial import settings
settings.ray_environment()
from ray.serve._private.constants import RAY_SERVE_USE_GRPC_BY_DEFAULT
print(RAY_SERVE_USE_GRPC_BY_DEFAULT)
"""
    env = {key: value for key, value in os.environ.items() if key not in (switch, "RAY_ADDRESS")}
    env |= {"RAY_TMPDIR": str(tmp_path)} | ({switch: given} if given else {})
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(given is None)
    assert f"ENV {switch}=1 " in (ROOT / "containerfile").read_text()
