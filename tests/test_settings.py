import os
import re

import pytest
import yaml

from tests.conftest import ROOT
from tutorial import TutorialError, settings

NO_FILE = ROOT / "no.env"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in [*settings.Settings.model_fields, "anyscale_artifact_storage"]:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def environment(monkeypatch):
    """What a test adds to the environment is taken away again."""
    before = dict(os.environ)
    yield os.environ
    for name in os.environ.keys() - before.keys():
        monkeypatch.delenv(name)


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


def test_the_profile_says_how_the_engines_are_started():
    profile = settings.Settings(_env_file=None).choose_profile({})
    assert profile.engine_kwargs(rank=16, max_tokens=32) == profile.engine | {
        "enable_lora": True,
        "max_lora_rank": 16,
        "generation_config": "vllm",
        "override_generation_config": {"max_new_tokens": 32},
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROFILE", "tpu"),
        ("TRAIN_ROWS", "0"),
        ("TEST_ROWS", "many"),
        ("PORT", "99999"),
        ("SEED", "-1"),
        ("SEED", "4294967296"),
        ("RUN_NAME", "../x"),
        ("RUN_NAME", "my--run"),
        ("RUN_NAME", "my-run-"),
        ("RUN_NAME", "-my-run"),
        ("RUN_NAME", "My-run"),
        ("RUN_NAME", "ab"),
        ("RUN_NAME", "a" * 64),
        ("RUN_NAME", "run\nname"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(TutorialError, match=f"^{name}={re.escape(repr(value))}") as error:
        settings.load(NO_FILE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("viggo", "viggo"),
        ("my/Own Task_2.yaml", "own-task-2"),
        ("%.yaml", "task"),
        (f"{'x' * 39}-y.yaml", "x" * 39),
    ],
)
def test_a_run_is_named_after_its_task(monkeypatch, name, prefix):
    monkeypatch.setenv("TASK", name)
    named = settings.load(NO_FILE).run_name
    assert re.fullmatch(rf"{prefix}-\d{{8}}-\d{{6}}", named)
    monkeypatch.setenv("RUN_NAME", named)  # what a run is called by itself may be asked for again
    assert settings.load(NO_FILE).run_name == named


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
    env.write_text("PORT=\n")
    assert settings.load(env).port is None


@pytest.mark.parametrize("folder", ["/proc/x", "/dev/null", "/dev/null/x", "~nobody-of-this-name/x"])
def test_a_shared_folder_that_cannot_be_written(monkeypatch, folder):
    monkeypatch.setenv("SHARED_DIR", folder)
    with pytest.raises(TutorialError, match=rf"^SHARED_DIR={folder}: .+; set SHARED_DIR to") as error:
        settings.load(NO_FILE).shared_folder()
    assert "\n" not in str(error.value)


def test_a_resumed_run_has_a_name(monkeypatch):
    monkeypatch.setenv("RESUME", "1")
    monkeypatch.setenv("API_KEYS", "a-key-of-some-customer")
    with pytest.raises(TutorialError, match=r"^RESUME=1: set RUN_NAME to the run to go on with$"):
        settings.load(NO_FILE)
    monkeypatch.setenv("RUN_NAME", "viggo-1")
    assert settings.load(NO_FILE).resume


@pytest.mark.parametrize(
    ("gpus", "job", "allowed"), [(0, False, True), (0, True, False), (1, False, False), (1, True, False)]
)
def test_synthetic_rows_are_for_a_notebook_on_a_cpu(monkeypatch, gpus, job, allowed):
    if job:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    config = settings.load(NO_FILE)
    assert config.sample_allowed(config.choose_profile({"GPU": gpus})) is allowed


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("PORT: 8123\n", 1, "'PORT: 8123' is not KEY=VALUE"),
        ("# mine\n\nPORT 8123\n", 3, "'PORT 8123' is not KEY=VALUE"),
        ("TASK=viggo\r\n\r\nRESUME\r\n", 3, "'RESUME' is not KEY=VALUE"),
        ("=8123\n", 1, "'=8123' is not KEY=VALUE"),
        ('API_KEYS="abc\n', 1, "'API_KEYS=\"abc' is not KEY=VALUE"),
        ("RUN-NAME=x\n", 1, "'RUN-NAME=x' is not KEY=VALUE"),
        ("A=1\nMODEL=a\0b\n", 2, "'MODEL=a\\x00b' is not KEY=VALUE"),
        ("MODEL=a\x1bb\n", 1, "'MODEL=a\\x1bb' is not KEY=VALUE"),
        ("PORTS=8123\n", 1, "PORTS is no setting; did you mean PORT?"),
        ("API_KEY=0123456789abcdef\n", 1, "API_KEY is no setting; did you mean API_KEYS?"),
        ("\n\nTRAINING_ROWS=3\n", 3, "TRAINING_ROWS is no setting; did you mean TRAIN_ROWS?"),
        ("NUM_WORKERS=3\n", 1, "NUM_WORKERS is no setting; did you mean WORKERS?"),
        ("MODEL_NAME=x\n", 1, "MODEL_NAME is no setting; did you mean MODEL?"),
        ("data_dir=x\n", 1, "data_dir is no setting; did you mean DATA?"),
        ("RUNNAME=x\n", 1, "RUNNAME is no setting; did you mean RUN_NAME?"),
        ("PORT=1\nTASK=viggo\nport=2\n", 3, "PORT is set twice"),
        ("HF_TOKEN=1\nHF_TOKEN=1\n", 2, "HF_TOKEN is set twice"),
    ],
)
def test_a_line_of_the_env_file_that_is_not_understood(tmp_path, content, line, problem):
    env = tmp_path / "my.env"
    env.write_bytes(content.encode())
    with pytest.raises(TutorialError, match=rf"^my\.env: line {line}: {re.escape(problem)}") as error:
        settings.load(env)
    assert "\n" not in str(error.value)


def test_what_the_env_file_may_hold(tmp_path, environment):
    env = tmp_path / ".env"
    env.write_bytes(
        "\ufeff# a comment\r\n\r\nPORT = 8123  # mine\r\nexport WORKERS=2\r\ntask='trains'\r\nSEED=\r\n"
        "AWS_PROFILE=mine\r\nOTHER_PROXY='${AWS_PROFILE}-x'\r\nEMPTY_ONE=\r\nSTORAGE=s3://b/t#1\r\n".encode()
    )
    config = settings.load(env)
    assert (config.port, config.workers, config.task, config.seed) == (8123, 2, "trains", 0)
    assert config.storage == "s3://b/t#1"
    assert (environment["AWS_PROFILE"], environment["OTHER_PROXY"]) == ("mine", "mine-x")
    assert not {"PORT", "WORKERS", "TASK", "task", "STORAGE", "EMPTY_ONE"} & environment.keys()


def test_the_environment_wins_over_the_env_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", "mine")
    monkeypatch.setenv("PORT", "8001")
    (tmp_path / ".env").write_text("HF_HOME=other\nPORT=8002\n")
    assert settings.load(tmp_path / ".env").port == 8001
    assert os.environ["HF_HOME"] == "mine"


NOT_TEXT = [
    ("utf-16", "KEY=1\n".encode("utf-16"), "line 1: not UTF-8"),
    ("latin-1", b"A=1\nB=\xe9\n", "line 2: not UTF-8"),
]


@pytest.mark.parametrize(
    ("content", "problem"), [each[1:] for each in NOT_TEXT], ids=[n[0] for n in NOT_TEXT]
)
def test_an_env_file_that_is_not_utf_8(tmp_path, content, problem):
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(TutorialError, match=rf"^\.env: {problem}; save the file as UTF-8$"):
        settings.load(tmp_path / ".env")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: \xe9\n", "line 1: not UTF-8"),
        ("a: b\n".encode("utf-16"), "line 1: not UTF-8"),
        ("a: b\n".encode("utf-16-le"), "not YAML: "),
        (b"a: 1\nb: \x01\n", "not YAML: "),
        (b"a: 1\nb: [2\n", "line 3: "),
        (b"a: 1\n1: b\n", "line 2: a key is no text; put it in quotes"),
        (b"a: {true: b}\n", "line 1: a key is no text; put it in quotes"),
        (b"? [a, b]\n: c\n", "line 1: a key is no text"),
        (b"name: a\nb: 1\nname: b\n", "line 3: name is given twice"),
        (b"a:\n  - {b: 1, b: 2}\n", "line 2: b is given twice"),
        (b"a: 2024-13-45\n", "not YAML: "),
        (b"a: !!python/object:os.system x\n", "line 1: could not determine a constructor"),
        (b"a: b\n---\nc: d\n", "line 2: "),
        (b"- a\n", "not a mapping of keys to values"),
        (b"", "not a mapping of keys to values"),
        (b"a: " + b"[" * 3000, "not YAML: "),
    ],
)
def test_a_yaml_that_cannot_be_read(tmp_path, content, problem):
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    with pytest.raises(TutorialError, match=rf"^my\.yaml: {re.escape(problem)}") as error:
        settings.read_yaml(path)
    assert "\n" not in str(error.value)


def test_a_yaml_that_is_not_there(tmp_path):
    with pytest.raises(TutorialError, match=r"No such file or directory$"):
        settings.read_yaml(tmp_path / "my.yaml")
    with pytest.raises(TutorialError, match=r"Is a directory$"):
        settings.read_yaml(tmp_path)


def test_a_yaml_from_another_editor(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_bytes("\ufeffa: &x {b: ü}\r\nc: {<<: *x, d: '1'}\r\n".encode())
    assert settings.read_yaml(path) == {"a": {"b": "ü"}, "c": {"b": "ü", "d": "1"}}


def test_what_a_profile_may_not_say():
    with pytest.raises(settings.ValidationError) as error:
        settings.Profile.model_validate({"name": "mine", "rows": {"train": 0}})
    problems = {".".join(each["loc"]): each["type"] for each in error.value.errors()}
    assert problems["name"] == "extra_forbidden"
    assert settings.first_error(error.value) == "model: Field required"


def test_an_unknown_key_of_a_profile_is_told_with_those_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    (tmp_path / "profiles").mkdir()
    profile = settings.read_yaml(ROOT / "profiles" / "cpu.yaml")
    for change, key, keys in (
        ({"engin": {}}, "engin", "model, recipe, rows, engine, processor"),
        ({"rows": {"tain": 7}}, "rows.tain", "train, val, test"),
    ):
        (tmp_path / "profiles" / "cpu.yaml").write_text(yaml.safe_dump(profile | change))
        with pytest.raises(TutorialError) as error:
            settings.Settings(_env_file=None).choose_profile({})
        assert str(error.value).startswith(f"cpu.yaml: {key}: there is no such key; the keys are {keys}")


def test_env_example_names_every_setting():
    named = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    known = {name.upper() for name in settings.Settings.model_fields}
    assert known <= named
    passed_on = {"HF_TOKEN", "HF_HUB_ENABLE_HF_TRANSFER", "HF_XET_HIGH_PERFORMANCE"}
    passed_on |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"}
    assert named - known == passed_on
    assert settings.load(ROOT / ".env.example").port is None
