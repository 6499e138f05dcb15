"""What a user may set, in the environment or `.env`, and the profile that they or the Ray cluster choose."""

import os
import re
import tempfile
from datetime import datetime
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import yaml
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import BaseModel, Field, PositiveInt, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings

from tutorial import TutorialError, first_error, one_line, read_text, slug

ROOT = Path(__file__).resolve().parents[1]
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set in a job that was submitted to a Ray cluster
OTHERS = ("AWS_", "AZURE_", "GOOGLE_", "HF_", "RAY_", "VLLM_", "WANDB_")  # AWS_PROFILE is no misspelt PROFILE


class Rows(BaseModel, extra="forbid"):
    """Rows of each split that a run uses, drawn at random; None means all of them."""

    train: PositiveInt | None = None
    val: PositiveInt | None = None
    test: PositiveInt | None = None


class Profile(BaseModel, extra="forbid"):
    """One of profiles/*.yaml, with the settings laid over it."""

    _name: str = ""
    model: str = Field(description="the base model: a name, a folder or a Hugging Face id")
    recipe: Path = Field(description="LLaMA-Factory's yaml, relative to the project's root")
    rows: Rows
    engine: dict[str, Any] = Field(description="vLLM's engine_kwargs, for batch and serving alike")
    processor: dict[str, Any] = Field(description="further fields of vLLMEngineProcessorConfig")
    deployment: dict[str, Any] = Field(description="LLMConfig's deployment_config: replicas and queues")
    serving: dict[str, Any] = Field(description="further fields of LLMConfig")
    lora: dict[str, Any] = Field(description="further fields of its lora_config")
    ingress: dict[str, Any] = Field(description="Ray Serve's options for the ingress deployment")
    worker_env: dict[str, str] = Field(description="environment variables of the engine's processes")

    name = property(lambda self: self._name, doc="Of the file; no key in it.")

    def engine_kwargs(self, rank: int, max_tokens: int) -> dict[str, Any]:
        """vLLM's engine_kwargs for adapters of at most `rank` and answers of at most `max_tokens` tokens."""
        # "vllm": without the penalties that a model may bring, as the batch stage would not apply them.
        limits = {"generation_config": "vllm", "override_generation_config": {"max_new_tokens": max_tokens}}
        return self.engine | {"enable_lora": True, "max_lora_rank": rank} | limits


class Settings(BaseSettings, env_ignore_empty=True, extra="ignore", env_file_encoding="utf-8-sig"):
    """What a user may set; `.env.example` explains each. Empty values count as unset."""

    profile: Literal["cpu", "gpu", "gpu-12gb"] | None = None
    # Without `--`, which Ray Serve reads as `/`; nor `-` at the end, as `<run name>-earlier` is served too.
    run_name: str | None = Field(None, pattern="^[a-z0-9]+(-[a-z0-9]+)*$", min_length=3, max_length=63)
    resume: bool = False
    storage: str | None = None
    shared_dir: Path | None = None
    task: str | None = None
    data: str | None = None
    skip_bad_rows: bool = False
    model: str | None = None
    recipe: Path | None = None
    train_rows: PositiveInt | None = None
    val_rows: PositiveInt | None = None
    test_rows: PositiveInt | None = None
    workers: PositiveInt | None = None
    port: int | None = Field(None, ge=1, le=65535)
    api_keys: SecretStr | None = None
    serve_timeout_s: PositiveInt = 900
    request_timeout_s: PositiveInt = 60
    batch_timeout_s: PositiveInt = 900
    kill_worker: bool = True
    clean_up: bool = False
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _name_of_task_and_time(self) -> "Settings":
        if self.resume and self.run_name is None:
            raise ValueError("RESUME=1: set RUN_NAME to the run to go on with")
        about = slug(self.task or (self.data if self.data != "sample" else None) or "viggo")
        self.run_name = self.run_name or f"{about}-{datetime.now():%Y%m%d-%H%M%S}"
        return self

    def storage_uri(self) -> str | None:
        """Where artifacts go: `STORAGE`, else Anyscale's artifact storage, else None (a local S3 server)."""
        return self.storage or os.environ.get("ANYSCALE_ARTIFACT_STORAGE") or None

    def shared_folder(self) -> Path:
        """The folder for the base model; TutorialError if it cannot be written."""
        anyscale = Path("/mnt/cluster_storage")
        shared = "ANYSCALE_ARTIFACT_STORAGE" in os.environ and anyscale.is_dir()
        folder = self.shared_dir or (anyscale if shared else ROOT / ".cache")
        try:
            folder = folder.expanduser().resolve()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except (OSError, RuntimeError) as error:  # RuntimeError: `~` has no home
            why = f"{getattr(error, 'strerror', error)}; set SHARED_DIR to a folder that can be written"
            raise TutorialError(f"SHARED_DIR={folder}: {why}") from None

    def sample_allowed(self, profile: Profile) -> bool:
        """Whether synthetic rows may replace a source that cannot be reached: on a CPU, not in a job."""
        return profile.name == "cpu" and SUBMITTED not in os.environ

    def choose_profile(self, resources: dict[str, float]) -> Profile:
        """The profile that `PROFILE` names, else the one that fits `ray.cluster_resources()`."""
        name = self.profile or ("gpu" if resources.get("GPU") else "cpu")
        try:
            profile = Profile.model_validate(read_yaml(ROOT / "profiles" / f"{name}.yaml"))
        except ValidationError as error:
            raise TutorialError(f"{name}.yaml: {first_error(error, Profile)}") from None
        profile._name, profile.model = name, self.model or profile.model
        profile.recipe = self.recipe or profile.recipe
        wanted = {split: rows for split in Rows.model_fields if (rows := getattr(self, f"{split}_rows"))}
        profile.rows = profile.rows.model_copy(update=wanted)
        if self.workers:
            profile.processor["concurrency"] = min(self.workers, profile.processor.get("concurrency", 1))
        return profile


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()  # PyYAML itself takes the last of two equal keys, and says nothing
        for key, _ in node.value:
            text = key.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
            if not text or key.value in seen:
                problem = f"{key.value} is given twice" if text else "a key is no text; put it in quotes"
                raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a UTF-8 file holds; TutorialError, naming the line, if it holds something else."""
    try:
        content = yaml.load(read_text(path), _Loader)  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = f"line {mark.line + 1}: {error.problem}" if mark else f"not YAML: {one_line(error)}"
        raise TutorialError(f"{path.name}: {problem}") from None
    if not isinstance(content, dict):
        raise TutorialError(f"{path.name}: not a mapping of keys to values")
    return content


def load(env_file: Path = ROOT / ".env") -> Settings:
    """The settings of this run; TutorialError if a value is wrong, or a line of `.env` (see `export`)."""
    export(env_file)
    try:
        return Settings(_env_file=env_file)
    except ValidationError as error:
        raise TutorialError(first_error(error)) from None


def export(env_file: Path) -> None:
    """Pass what `.env` holds for other programs (AWS_*, HF_*, RAY_*) to the environment, which wins.

    TutorialError if a line is not KEY=VALUE, or its key is set twice or almost a setting's name.
    """
    text = read_text(env_file) if env_file.exists() else ""
    known, seen = [name.upper() for name in Settings.model_fields], []
    for key, value, source, failed in parse_stream(StringIO(text)):
        blank = source.string[: -len(source.string.lstrip())].count("\n")
        where = f"{env_file.name}: line {source.line + blank}"
        odd = key and (value is None or not re.fullmatch(r"[A-Za-z_]\w*", key))
        if failed or odd or re.search("[\0-\x08\x0e-\x1f\x7f]", source.string):
            raise TutorialError(f"{where}: {source.string.strip()[:30]!r} is not KEY=VALUE")
        if key is None:  # a comment
            continue
        name = key.upper() if key.upper() in known else key  # settings may be written in any case
        if name in seen:
            raise TutorialError(f"{where}: {name} is set twice")
        if name not in known and not name.startswith(OTHERS):
            near = [each for each in known if name.upper().startswith(f"{each}_")]
            for each in near or get_close_matches(name.upper(), known, 1, 0.75):
                raise TutorialError(f"{where}: {name} is no setting; did you mean {each}?")
        seen.append(name)
    # Not our own settings: they are read from the file each time, and here the first value would stay.
    for key, value in dotenv_values(stream=StringIO(text)).items():
        if value and key not in os.environ and key.upper() not in known:
            os.environ[key] = value
