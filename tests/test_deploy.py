"""What deploy/ says to Ray, by Ray's own models, and that it is what profiles/gpu.yaml and the recipe say.

The vendors' own models of these files are in tests/vendors, with an environment of their own.
"""

import copy
import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from ray.runtime_env import RuntimeEnv
from ray.serve.config import AutoscalingConfig
from ray.serve.llm import LLMConfig, LLMServingArgs
from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from tests.conftest import ROOT
from tutorial import tasks
from tutorial.settings import Settings, read_yaml

DEPLOY = ROOT / "deploy"
FILES = sorted(DEPLOY.rglob("*.yaml"))
TEXTS = {path.relative_to(DEPLOY).as_posix(): path.read_text() for path in FILES}
PLACEHOLDERS = {"<bucket>", "<image>"}

OWN_JOB, JOB, SERVICE, RAY_JOB, RAY_SERVICE = (
    yaml.safe_load(TEXTS[name])
    for name in (
        "job.yaml",
        "anyscale/job.yaml",
        "anyscale/service.yaml",
        "kuberay/rayjob.yaml",
        "kuberay/rayservice.yaml",
    )
)
RAY_JOB_ENV = yaml.safe_load(RAY_JOB["spec"]["runtimeEnvYAML"])
SERVE = {
    "serve.yaml": yaml.safe_load(TEXTS["serve.yaml"]),
    "kuberay/rayservice.yaml": yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"]),
    "anyscale/service.yaml": {key: SERVICE[key] for key in ("http_options", "applications")},
}
APPLICATION = SERVE["serve.yaml"]["applications"][0]
MODEL = APPLICATION["args"]["llm_configs"][0]
PROFILE = Settings(_env_file=None, profile="gpu").choose_profile({})
RECIPE = read_yaml(ROOT / PROFILE.recipe)


def known(keys, model: type[BaseModel]):
    """Ray Serve passes over keys that it does not know: ValueError for one that is none of the model's."""
    if unknown := set(keys) - set(model.model_fields):
        raise ValueError(f"{model.__name__} has no {sorted(unknown)}")


def check(config):
    """ValueError if Ray Serve or Ray Serve LLM would not take all of a Serve config."""
    ServeDeploySchema.model_validate(config)
    known(config, ServeDeploySchema)
    known(config["http_options"], HTTPOptionsSchema)
    for application in config["applications"]:
        known(application, ServeApplicationSchema)
        RuntimeEnv(**application.get("runtime_env", {}))
        LLMServingArgs.model_validate(application["args"])
        known(ingress := application["args"]["ingress_deployment_config"], DeploymentSchema)
        known(ingress["autoscaling_config"], AutoscalingConfig)
        for model in application["args"]["llm_configs"]:
            LLMConfig.model_validate(model)
            known(model["deployment_config"], DeploymentSchema)
            known(model["deployment_config"]["autoscaling_config"], AutoscalingConfig)


@pytest.mark.parametrize("name", SERVE)
def test_a_serve_config(name):
    check(SERVE[name])


@pytest.mark.parametrize(
    "path",
    [
        [],
        ["http_options"],
        ["applications", 0],
        ["applications", 0, "args"],
        ["applications", 0, "args", "ingress_deployment_config"],
        ["applications", 0, "args", "ingress_deployment_config", "autoscaling_config"],
        ["applications", 0, "args", "llm_configs", 0],
        ["applications", 0, "args", "llm_configs", 0, "model_loading_config"],
        ["applications", 0, "args", "llm_configs", 0, "lora_config"],
        ["applications", 0, "args", "llm_configs", 0, "deployment_config"],
        ["applications", 0, "args", "llm_configs", 0, "deployment_config", "autoscaling_config"],
        ["applications", 0, "args", "llm_configs", 0, "deployment_config", "backpressure_config"],
    ],
)
def test_a_misspelt_key(path):
    config = copy.deepcopy(SERVE["serve.yaml"])
    place = config
    for key in path:
        place = place[key]
    place["misspelt"] = 1
    with pytest.raises(ValueError, match="misspelt"):
        check(config)


@pytest.mark.parametrize("name", SERVE)
def test_the_copies_agree(name):
    """But for the address; and Anyscale brings the code itself."""
    (application,) = SERVE[name]["applications"]
    own = {"runtime_env": APPLICATION["runtime_env"]} if name == "anyscale/service.yaml" else {}
    assert own | application == APPLICATION
    host = {"host", "port"} & SERVE[name]["http_options"].keys()
    http_options = {key: value for key, value in SERVE[name]["http_options"].items() if key not in host}
    assert http_options == {"request_timeout_s": SERVE["serve.yaml"]["http_options"]["request_timeout_s"]}


def test_the_model_is_served_as_the_profile_says():
    assert MODEL["model_loading_config"] == {
        "model_id": Path(PROFILE.model).name,
        "model_source": PROFILE.model,
    }
    max_tokens = tasks.load("viggo").max_tokens
    assert MODEL["engine_kwargs"] == PROFILE.engine_kwargs(RECIPE["lora_rank"], max_tokens)
    assert MODEL["runtime_env"] == {"env_vars": PROFILE.worker_env}
    adapters = {"dynamic_lora_loading_path": MODEL["lora_config"]["dynamic_lora_loading_path"]}
    assert MODEL["lora_config"] == PROFILE.lora | adapters
    assert PROFILE.deployment == MODEL["deployment_config"]
    # It only saves time if the model is a folder, and here it comes from a hub.
    assert PROFILE.serving == {"callback_config": {"callback_class": "tutorial.quickstart.QuickStart"}}
    assert APPLICATION["args"]["ingress_deployment_config"] == PROFILE.ingress


def test_the_bounds():
    bounds = MODEL["deployment_config"]
    assert bounds["max_ongoing_requests"] == PROFILE.engine["max_num_seqs"]
    assert bounds["autoscaling_config"]["target_ongoing_requests"] < bounds["max_ongoing_requests"]
    assert bounds["max_queued_requests"] > 0  # -1 is no bound
    assert SERVE["serve.yaml"]["http_options"]["request_timeout_s"] == Settings().request_timeout_s
    assert bounds["backpressure_config"]["retry_after_s"] > 0


def test_the_service_finds_what_the_job_leaves(monkeypatch):
    for env in (OWN_JOB["env_vars"], JOB["env_vars"], RAY_JOB_ENV["env_vars"]):
        for name in list(env):
            assert name.lower() in Settings.model_fields
            monkeypatch.setenv(name, env[name].replace("<bucket>", "bucket"))
        job = Settings(_env_file=None)
        assert (job.profile, job.kill_worker) == ("gpu", False)
        # Not left to the task, whose rows may be replaced by synthetic ones if they cannot be reached.
        assert job.data == tasks.load("viggo").source
        adapters = MODEL["lora_config"]["dynamic_lora_loading_path"]
        assert adapters == f"s3://<bucket>/{job.run_name}/adapters"
    assert RAY_JOB_ENV["env_vars"]["STORAGE"] == "s3://<bucket>"
    assert OWN_JOB["env_vars"] == RAY_JOB_ENV["env_vars"]
    RuntimeEnv(**RAY_JOB_ENV)
    RuntimeEnv(**OWN_JOB)


def test_jobs_run_the_notebook_and_services_their_endpoint():
    for job in (JOB, RAY_JOB["spec"]):
        command, flag, module = job["entrypoint"].split()
        assert (command, flag) == ("python", "-m")
        assert importlib.util.find_spec(module)
    assert APPLICATION["import_path"] == "tutorial.endpoint:build"


@pytest.mark.parametrize("job", [JOB, RAY_JOB["spec"]], ids=["anyscale", "kuberay"])
def test_a_job_is_not_run_twice_under_one_name(job):
    """The second time it would be refused, but for RESUME=1."""
    assert job.get("max_retries", job.get("backoffLimit")) == 0


@pytest.mark.parametrize("name", ["anyscale/compute_aws.yaml", "anyscale/compute_gce.yaml"])
def test_anyscale_has_room_for_the_recipe(name):
    compute = yaml.safe_load(TEXTS[name])
    assert sum(group["max_nodes"] for group in compute["worker_nodes"]) == RECIPE["ray"]["num_workers"]
    (create,) = re.findall(r"^#   (anyscale compute-config create .*)$", TEXTS[name], re.MULTILINE)
    assert f"-n {JOB['compute_config']} " in create
    assert JOB["compute_config"] == SERVICE["compute_config"]


def test_kuberay_has_room_for_the_recipe():
    (group,) = RAY_JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    each, needed = pod(group)["resources"]["limits"], RECIPE["ray"]["resources_per_worker"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == RECIPE["ray"]["num_workers"]
    assert (int(each["cpu"]) >= needed["CPU"], int(each["nvidia.com/gpu"])) == (True, needed["GPU"])
    (group,) = RAY_SERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    scaling = MODEL["deployment_config"]["autoscaling_config"]
    assert (group["minReplicas"], group["maxReplicas"]) == (scaling["min_replicas"], scaling["max_replicas"])


def pod(group):
    (container,) = group["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize(
    "cluster",
    [RAY_JOB["spec"]["rayClusterSpec"], RAY_SERVICE["spec"]["rayClusterConfig"]],
    ids=["job", "service"],
)
def test_kuberay_lets_nobody_in(cluster):
    base = (ROOT / "containerfile").read_text()
    assert f"ray-llm:{cluster['rayVersion']}-" in base
    assert cluster["authOptions"] == {"mode": "token"}
    head = cluster["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert "enableIngress" not in head
    for group in (head, *cluster["workerGroupSpecs"]):
        assert pod(group)["envFrom"] == [{"secretRef": {"name": "tutorial"}}]
        assert "env" not in pod(group)


def test_who_can_reach_a_service():
    assert SERVE["serve.yaml"]["http_options"]["host"] == "127.0.0.1"
    assert SERVE["kuberay/rayservice.yaml"]["http_options"]["host"] == "0.0.0.0"  # noqa: S104
    assert SERVICE["query_auth_token_enabled"] is False  # the key is ours


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_user_fills_in(name):
    """Two things, each said in a comment of the file that has it; and no secret, no account."""
    found = set(re.findall(r"<[^>\s]*>", TEXTS[name]))
    assert found <= PLACEHOLDERS
    for placeholder in found:
        assert re.search(rf"#.*{placeholder}:|{placeholder}\s+#", TEXTS[name]), placeholder
    assert not re.search(
        r"AKIA|[0-9]{12}|[0-9a-f]{32}|arn:|(?i:api_keys|secret\w*key|token): *[\"'\w]", TEXTS[name]
    )
