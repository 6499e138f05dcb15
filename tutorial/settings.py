"""Settings from the environment and `.env`, and the profile that they or the Ray cluster choose."""

import os
import re
import secrets
import sys
import tempfile
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from dotenv import dotenv_values
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from tutorial import TutorialError

ROOT = Path(__file__).resolve().parents[1]
ANYSCALE_SHARED = Path("/mnt/cluster_storage")


class Rows(BaseModel):
    """Rows of each split that a run uses, drawn at random from those there are; None is all of them."""

    model_config = ConfigDict(extra="forbid")

    train: PositiveInt | None = None
    val: PositiveInt | None = None
    test: PositiveInt | None = None


class Profile(BaseModel):
    """One of profiles/*.yaml, with the settings laid over it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    model: str = Field(description="the base model: a name, a folder or a Hugging Face id")
    recipe: Path = Field(description="LLaMA-Factory's yaml, relative to the project's root")
    rows: Rows
    engine: dict[str, Any] = Field(description="vLLM's engine_kwargs, for batch and serving alike")
    processor: dict[str, Any] = Field(description="further fields of vLLMEngineProcessorConfig")
    serving: dict[str, Any] = Field(description="further fields of LLMConfig")
    lora: dict[str, Any] = Field(description="further fields of its lora_config")
    ingress: dict[str, Any] = Field(description="Ray Serve's options of what stands before the model")
    worker_env: dict[str, str] = Field(description="environment variables of the engine's processes")


class Settings(BaseSettings):
    """What a user may set; `.env.example` explains each. Empty values count as unset."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    profile: Literal["cpu", "gpu"] | None = None
    run_name: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9-]{2,62}$")
    resume: bool = False
    storage: str | None = None
    shared_dir: Path | None = None
    task: str = "viggo"
    data: str | None = None
    skip_bad_rows: bool = False
    model: str | None = None
    recipe: Path | None = None
    train_rows: PositiveInt | None = None
    val_rows: PositiveInt | None = None
    test_rows: PositiveInt | None = None
    workers: PositiveInt | None = None
    port: int = Field(8000, ge=1, le=65535)
    api_keys: SecretStr | None = None
    serve_timeout_s: PositiveInt = 900
    request_timeout_s: PositiveInt = 60
    batch_timeout_s: PositiveInt = 900
    kill_worker: bool = True
    clean_up: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _name_of_task_and_time(self) -> "Settings":
        if self.resume and self.run_name is None:
            raise ValueError("RESUME=1: set RUN_NAME to the run to go on with")
        if self.run_name is None:
            task = re.sub("[^a-z0-9]+", "-", Path(self.task).stem.lower()).strip("-")[:40] or "task"
            self.run_name = f"{task}-{datetime.now():%Y%m%d-%H%M%S}"
        return self

    def storage_uri(self) -> str | None:
        """Where artifacts go: `STORAGE`, else Anyscale's artifact storage, else None (a local S3 server)."""
        return self.storage or os.environ.get("ANYSCALE_ARTIFACT_STORAGE") or None

    def shared_folder(self) -> Path:
        """A folder for files too large to fetch twice: every machine sees it, or there is one alone."""
        folder = self.shared_dir or (ANYSCALE_SHARED if self._on_anyscale() else ROOT / ".cache")
        folder = folder.expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def all_see_shared_folder(self, nodes: list[dict]) -> bool:
        """Whether every machine of `ray.nodes()` sees `shared_folder`."""
        # A cluster that was joined may get more machines later.
        alone = sum(node["Alive"] for node in nodes) == 1 and not joins_cluster()
        return alone or self.shared_dir is not None or self._on_anyscale()

    @staticmethod
    def _on_anyscale() -> bool:
        return "ANYSCALE_ARTIFACT_STORAGE" in os.environ and ANYSCALE_SHARED.is_dir()

    def choose_profile(self, cluster: dict[str, float]) -> Profile:
        """The profile that `PROFILE` names, else the one for what `ray.cluster_resources()` holds."""
        name = self.profile or ("gpu" if cluster.get("GPU") else "cpu")
        path = ROOT / "profiles" / f"{name}.yaml"
        try:
            profile = Profile(name=name, **read_yaml(path))
        except ValidationError as error:
            raise TutorialError(f"{path.name}: {_first(error)}") from None
        profile.model = self.model or profile.model
        profile.recipe = self.recipe or profile.recipe
        for split in ("train", "val", "test"):
            wanted = getattr(self, f"{split}_rows")
            if wanted is not None:
                setattr(profile.rows, split, wanted)
        if self.workers:
            profile.processor["concurrency"] = min(self.workers, profile.processor["concurrency"])
        return profile


def read_yaml(path: Path) -> dict[str, Any]:
    """A file that holds a mapping of keys to values.

    Raises:
        TutorialError: it holds no YAML, naming the line, or something else than a mapping.
        OSError: it cannot be read.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        raise TutorialError(
            f"{path.name}: not YAML: line {error.problem_mark.line + 1}: {error.problem}"
        ) from None
    if not isinstance(content, dict):
        raise TutorialError(f"{path.name}: not a mapping of keys to values")
    return content


def load(env_file: Path = ROOT / ".env") -> Settings:
    """The settings of this run. What else `.env` holds (AWS_*, HF_*, RAY_*) goes to the environment.

    Raises:
        TutorialError: a setting has a value that it cannot have.
    """
    _export(env_file)
    try:
        return Settings(_env_file=env_file)
    except ValidationError as error:
        raise TutorialError(_first(error)) from None


def _export(env_file: Path) -> None:
    # An empty value in .env is "not set", for boto3 and the Hugging Face hub as for us. Settings of ours are
    # read from the file each time: in the environment the first value would stay.
    for key, value in dotenv_values(env_file).items():
        if value and key not in os.environ and key.lower() not in Settings.model_fields:
            os.environ[key] = value


def joins_cluster() -> bool:
    """Whether `ray.init` will join a cluster that runs already, rather than start one here."""
    started = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()), "ray", "ray_current_cluster")
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local") or started.is_file()


def ray_environment(env_file: Path = ROOT / ".env") -> None:
    """Set what Ray reads when it is imported: the cluster that `ray.init` starts here answers only to who
    holds a token made for it, and its Ray Serve saves threads and messages.

    A cluster that it joins keeps its own environment; `containerfile` sets the switch of Ray Serve.

    Raises:
        TutorialError: Ray was imported before, and has read that there is no token.
    """
    _export(env_file)
    if joins_cluster():
        return
    optimize_serve()
    if "RAY_AUTH_MODE" in os.environ:
        return
    if "ray" in sys.modules:
        raise TutorialError("Ray was imported before its authentication was set up; restart the kernel")
    # In the environment, for this process and those that it starts; Ray's own would be a file that stays.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def optimize_serve() -> None:
    """Have the Ray Serve that this process imports and starts save threads and messages, unless it is set."""
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    # The part that does not pay without HAProxy: a port at each ingress, which stays open for half a minute.
    os.environ.setdefault("RAY_SERVE_ENABLE_DIRECT_INGRESS", "0")


def local_cluster() -> dict[str, Any]:
    """What `ray.init` needs to start a cluster of this machine alone; nothing where it joins one."""
    if joins_cluster():
        return {}
    options = {"num_cpus": max(8, os.cpu_count()), "include_dashboard": False}
    if version("torch").endswith("+cpu"):  # a GPU that this environment's torch cannot use is none
        options["num_gpus"] = 0
    return options


def runtime_env(env_vars: dict[str, str]) -> dict[str, Any]:
    """`ray.init`'s runtime environment: this project's code and these variables for every worker.

    A job brings its code along (`ray job submit --working-dir`), and Ray takes that from one side alone.
    """
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    code = {} if RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ else {"working_dir": str(ROOT)}
    return code | {"env_vars": env_vars}


def check_fits(cluster: dict[str, float], workers: int, resources: dict[str, float]) -> None:
    """On a cluster of this machine alone, TutorialError if the training workers find no room there.

    A cluster that was joined may grow when it is asked to: there Ray Train waits, and this says for what.
    """
    for kind, each in resources.items():
        if workers * each > cluster.get(kind, 0):
            needed = f"{workers} workers with {each:g} {kind} each need {workers * each:g} {kind}"
            if not joins_cluster():
                here = f"this machine has {cluster.get(kind, 0):g}"
                raise TutorialError(f"{needed}, {here}; set WORKERS to fewer")
            print(f"{needed}, the cluster has {cluster.get(kind, 0):g}: waiting for more, or set WORKERS")


def _first(error: ValidationError) -> str:
    """A validation error's first finding as one line that names the setting."""
    found = error.errors()[0]
    if not found["loc"]:  # of all settings together, whose values are not to be printed
        return found["msg"].removeprefix("Value error, ")
    key = "_".join(str(part) for part in found["loc"]).upper()
    return f"{key}={found['input']!r}: {found['msg']}"
