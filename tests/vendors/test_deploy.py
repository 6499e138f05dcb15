"""The files of deploy/anyscale by the `anyscale` package's own classes; those of deploy/kuberay by KubeRay's
fields and, below them, Kubernetes' models. In .venv-deploy (`make deploy-check`), offline, without a login.

What stands inside these files for Ray Serve is tested in tests/test_deploy.py.
"""

import copy
from pathlib import Path
from typing import Literal

import pytest
import yaml
from anyscale.compute_config.models import ComputeConfig
from anyscale.job.models import JobConfig
from anyscale.service.models import ServiceConfig
from kubernetes.client import models as kubernetes
from pydantic import BaseModel, ConfigDict

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
VALUES = {"<bucket>": "a-bucket/a/prefix", "<image>": "registry.example.org/team/tutorial:1"}


class KubeRay(BaseModel):
    """KubeRay's resources have no Python models. These have the fields that its API reference lists for 1.6:
    docs.ray.io/en/master/cluster/kubernetes/references/api.html; ray-operator/apis/ray/v1 of its repository.
    """

    model_config = ConfigDict(extra="forbid", strict=True)


class AuthOptions(KubeRay):
    mode: Literal["disabled", "token"] = "token"
    secretName: str | None = None
    enableK8sTokenAuth: bool = False


class AutoscalerOptions(KubeRay):
    resources: kubernetes.V1ResourceRequirements | None = None
    image: str | None = None
    imagePullPolicy: str | None = None
    securityContext: kubernetes.V1SecurityContext | None = None
    idleTimeoutSeconds: int | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    version: Literal["v1", "v2"] | None = None
    env: list[kubernetes.V1EnvVar] | None = None
    envFrom: list[kubernetes.V1EnvFromSource] | None = None
    volumeMounts: list[kubernetes.V1VolumeMount] | None = None


class HeadGroupSpec(KubeRay):
    template: kubernetes.V1PodTemplateSpec
    rayStartParams: dict[str, str]
    headService: kubernetes.V1Service | None = None
    enableIngress: bool | None = None
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] | None = None


class ScaleStrategy(KubeRay):
    workersToDelete: list[str]


class WorkerGroupSpec(KubeRay):
    groupName: str
    template: kubernetes.V1PodTemplateSpec
    rayStartParams: dict[str, str]
    minReplicas: int
    maxReplicas: int
    replicas: int = 0
    numOfHosts: int = 1
    idleTimeoutSeconds: int | None = None
    scaleStrategy: ScaleStrategy | None = None
    suspend: bool | None = None


class RayClusterSpec(KubeRay):
    headGroupSpec: HeadGroupSpec
    workerGroupSpecs: list[WorkerGroupSpec] = []
    rayVersion: str | None = None
    authOptions: AuthOptions | None = None
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    headServiceAnnotations: dict[str, str] | None = None
    managedBy: str | None = None
    suspend: bool | None = None


class SubmitterConfig(KubeRay):
    backoffLimit: int | None = None


class RayJobSpec(KubeRay):
    entrypoint: str
    rayClusterSpec: RayClusterSpec
    runtimeEnvYAML: str | None = None
    activeDeadlineSeconds: int | None = None
    backoffLimit: int = 0
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: int = 0
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    submitterConfig: SubmitterConfig | None = None
    submitterPodTemplate: kubernetes.V1PodTemplateSpec | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    entrypointResources: str | None = None
    jobId: str | None = None
    metadata: dict[str, str] | None = None
    managedBy: str | None = None
    suspend: bool | None = None


class RayServiceUpgradeStrategy(KubeRay):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"] | None = None


class RayServiceSpec(KubeRay):
    serveConfigV2: str
    rayClusterConfig: RayClusterSpec
    serveService: kubernetes.V1Service | None = None
    upgradeStrategy: RayServiceUpgradeStrategy | None = None
    excludeHeadPodFromServeSvc: bool | None = None


class RayJob(KubeRay):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: kubernetes.V1ObjectMeta
    spec: RayJobSpec


class RayService(KubeRay):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: kubernetes.V1ObjectMeta
    spec: RayServiceSpec


CHECKS = {
    "anyscale/job.yaml": JobConfig.from_dict,
    "anyscale/service.yaml": ServiceConfig.from_dict,
    "anyscale/compute_aws.yaml": ComputeConfig.from_dict,
    "anyscale/compute_gce.yaml": ComputeConfig.from_dict,
    "kuberay/rayjob.yaml": RayJob.model_validate,
    "kuberay/rayservice.yaml": RayService.model_validate,
}
# Any key may stand in these. (Those of Serve are tested with Ray's models.)
FREE = {"env_vars", "applications", "http_options", "limits", "requests", "rayStartParams"}


def filled(name):
    text = (DEPLOY / name).read_text()
    for placeholder, value in VALUES.items():
        text = text.replace(placeholder, value)
    return yaml.safe_load(text)


def mappings(tree, path=()):
    """The path of every mapping in a tree that does not take any key."""
    if isinstance(tree, dict):
        yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        below = (*path, key)
        if isinstance(value, dict | list) and key not in FREE and below != ("head_node", "resources"):
            yield from mappings(value, below)


@pytest.mark.parametrize("name", CHECKS)
def test_a_file(name):
    CHECKS[name](filled(name))


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name in CHECKS for path in mappings(filled(name))], ids=str
)
def test_a_misspelt_key(name, path):
    tree = filled(name)
    place = tree
    for key in path:
        place = place[key]
    place["misspelt"] = "x"
    with pytest.raises((TypeError, ValueError), match="misspelt"):
        CHECKS[name](tree)


@pytest.mark.parametrize("name", CHECKS)
def test_a_value_of_another_type(name):
    for key in filled(name):
        tree = copy.deepcopy(filled(name))
        tree[key] = 1.5
        with pytest.raises((TypeError, ValueError)):
            CHECKS[name](tree)


def test_every_file_is_known():
    assert {f"{path.parent.name}/{path.name}" for path in DEPLOY.glob("*/*")} == set(CHECKS)
