"""The benchmarks that want a GPU: their command lines, and a small run of each on the CPU."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import RayTaskError

from benchmarks import common, mean
from tests.conftest import ROOT


def run(name, *options, returncode=0, env=None):
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    env = os.environ | (env or {})
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == returncode, done.stderr[-3000:]
    return done


def small(name, tmp_path, *options):
    """What the small run wrote, and what it printed."""
    path = tmp_path / "out.json"
    shown = run(name, "--small", "--out", str(path), *options).stdout
    written = json.loads(path.read_text())
    assert written["stamp"]["packages"]["ray"]
    return written["candidates"], shown


@pytest.mark.parametrize("name", ["train", "batch", "serving", "accuracy", "recipes"])
def test_help_says_what_is_measured_and_names_the_candidates(name):
    shown = run(name, "--help").stdout
    assert f"benchmarks/gpu_{name}.json" in shown
    assert "candidates:" in shown


def test_a_missing_gpu_is_one_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(run("train", returncode=1).stderr.strip().splitlines()) == 1


def test_a_candidate_that_is_not_known():
    assert "no candidate nine; known: ancestor" in run("train", "--candidates", "nine", returncode=2).stderr


def test_the_mean_of_the_last_weights(tmp_path):
    network = torch.nn.Linear(1, 1, bias=False)
    callback, state = mean.Mean(0.5), SimpleNamespace(max_steps=4)
    callback.on_train_begin(None, state, None, model=network)
    for state.global_step in range(1, 5):
        network.weight.data.fill_(state.global_step)
        callback.on_step_end(None, state, None)
    callback.on_train_end(None, state, None, model=network)
    assert network.weight.item() == 3.5  # of the steps 3 and 4


def test_an_error_of_ray_in_a_process_of_its_own():
    with pytest.raises(RuntimeError, match="RayTaskError"):
        common.alone(fail)


def fail():
    error = RuntimeError("no more files")
    raise RayTaskError("f", "no more files", error).as_instanceof_cause()


@pytest.mark.slow
def test_train_goes_on_after_a_candidate_that_fails(tmp_path):
    more = "packed: {packing: true, disable_gradient_checkpointing: true}"
    options = ["--seconds", "1", "--warmup", "1", "--try", "broken: {no_such_key: 1}", "--try", more]
    found, shown = small("train", tmp_path, *options, "--candidates", "broken", "ancestor", "packed")
    assert "no_such_key" in found["broken"]["failed"]
    assert found["ancestor"]["checkpointing"]
    assert not found["packed"]["checkpointing"]
    for name in ("ancestor", "packed"):
        assert found[name]["tokens_per_s"] > found[name]["samples_per_s"] > 0
        assert 0 < found[name]["share_of_limit"] < 1
        assert found[name]["loss"]["mean"] > 0
        assert name in shown


@pytest.mark.slow
def test_batch(tmp_path):
    options = ["--tokens", "4", "--candidates", "plain vLLM", "profile"]
    found, shown = small("batch", tmp_path, *options)
    assert found["profile"]["rows_per_s"] == pytest.approx(96 / found["profile"]["seconds"])
    assert found["profile"]["over_plain"] > 0
    assert "plain vLLM" in shown


@pytest.mark.slow
def test_serving(tmp_path):
    options = ["--levels", "1", "2", "--each", "1", "--port", "8123"]
    candidates = ["vllm serve", "Ray's defaults", "first piece at once"]
    found, _ = small("serving", tmp_path, *options, "--candidates", *candidates)
    assert list(found) == candidates
    for each in found.values():
        assert [level["concurrency"] for level in each["levels"]] == [1, 2]
        assert all(level["p50_ttft_ms"] > 0 and level["request_throughput"] > 0 for level in each["levels"])
        assert each["levels"][0]["of_vllm"]


@pytest.mark.slow
def test_accuracy(tmp_path):
    changed = "short: {seed: 1, max_steps: 2}"
    found, shown = small("accuracy", tmp_path, "--try", changed, "--candidates", "short", "--port", "8124")
    assert found["short"]["rows"] == {"train": 24, "val and test": 10}
    assert all(0 <= found["short"][split] <= 1 for split in ("val", "test", "val, guided", "test, guided"))
    assert found["short"]["seconds"]["fine-tuning"] > 0
    assert json.loads((tmp_path / "out.json").read_text())["test"]["mean"] == found["short"]["test"]
    assert "test: mean" in shown or found["short"]["test"] == 0


@pytest.mark.production
def test_load(tmp_path):
    out, picture = tmp_path / "load.json", tmp_path / "load.svg"
    options = ["--small", "--levels", "1", "4", "--each", "2", "--clients", "4", "--hold-s", "5"]
    run("load", *options, "--port", "8125", "--out", str(out), "--picture", str(picture))
    found = json.loads(out.read_text())
    assert [level["concurrency"] for level in found["levels"]] == [1, 4]
    assert all(
        level["p50_ttft_ms"] < level["p50_e2el_ms"] < level["p99_e2el_ms"] for level in found["levels"]
    )
    running = [each["replicas"] for each in found["autoscaling"]["replicas"]]
    assert (running[0], max(running), running[-1]) == (1, 2, 1)
    for part in ("autoscaling", "killed replica", "rollout"):
        assert found[part]["failed"] == []
        assert found[part]["answered"] > 4
    assert picture.stat().st_size > 10_000


@pytest.mark.production
def test_answers(tmp_path):
    out = tmp_path / "answers.json"
    few = {"DATA": "sample", "TRAIN_ROWS": "24", "VAL_ROWS": "4", "TEST_ROWS": "6", "KILL_WORKER": "0"}
    few |= {"RUN_NAME": "answers-1", "PORT": "8126", "STORAGE": str(tmp_path)}
    ways = {}
    for more in ({}, {"RESUME": "1"}):  # the second time nothing is left to train or to answer
        run("answers", "--out", str(out), env=few | more)
        found = json.loads(out.read_text())
        ways[bool(more)] = found["ways"]
        assert found["rows"] == 6
        assert len(found["ways"]) == 6
        assert all(0 <= way["exact match"] <= 1 for way in found["ways"])
        assert sum(way["other answers"] for way in found["ways"]) <= 6  # of 36
    assert [way["batch stage"] for way in ways[True]] == [way["batch stage"] for way in ways[False]]


@pytest.mark.slow
def test_recipes(tmp_path):
    found, shown = small("recipes", tmp_path, "--try", "short: {max_steps: 2}", "--candidates", "short")
    assert found["short"]["training"]["eval_loss"] > 0
    assert list(found["short"]["exact match"]) == ["last", "mean 0.3", "mean 0.6"]
    assert all(0 <= each["val"] <= 1 for each in found["short"]["exact match"].values())
    assert "val, mean 0.3" in shown
