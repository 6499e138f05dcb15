"""The benchmarks: their command lines, what they use of README.ipynb, and a small run of each on the CPU."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmarks import accuracy, common, serving, train
from tests import cells
from tests.conftest import ROOT
from tutorial import run

SCRIPTS = ("train", "batch", "serving", "load", "accuracy", "curve")


def main(name, *options):
    importlib.import_module(f"benchmarks.{name}").main(list(options))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_the_file_and_the_candidates(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main(name, "--help")
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"python -m benchmarks.{name}" in shown
    assert f"benchmarks/results/{name}-<this machine>.json" in shown
    assert ("candidates:" in shown) == (name not in ("load", "curve"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main("train")
    assert ended.value.code == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_candidate_that_is_not_known(capsys):
    with pytest.raises(SystemExit) as ended:
        main("train", "--candidates", "nine")
    assert ended.value.code == 2
    assert "no candidate nine; known: ancestor" in capsys.readouterr().err


def test_every_measurement_has_a_name_of_its_own():
    """No key of results.json looks like one, so that none is hidden on the page by another."""
    names = [path.stem for path in (ROOT / "benchmarks").rglob("*.json")]
    assert names
    for name in names:
        assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)+", name), f"{name}: not <script>-<machine>[-what]"
    assert len(names) == len(set(names))
    assert not set(names) & set(json.loads((ROOT / "results.json").read_text()))


def test_every_cell_and_name_that_is_used_is_there():
    sources = run.cells()
    defined = {"store", "resources"}
    for source in sources.values():
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.FunctionDef(name=name) | ast.Name(id=name, ctx=ast.Store()) | ast.alias(name=name):
                    defined.add(name)
    lists = [each for each in vars(cells).values() if isinstance(each, list)]
    ids, names = {item for each in lists for item in each if re.fullmatch(r"[a-z-]+", item)}, set()
    users = [path.read_text() for path in [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tests/*.py")]]
    users = [text for text in users if re.search(r"run\.define\(|common\.notebook\(", text)]
    for source in [text for text in users if "no-such-cell" not in text]:  # of tests that a cell is missing
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name("run" | "ids"), attr="define" | "index")):
                    ids |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
                case ast.Subscript(value=ast.Name("names"), slice=ast.Constant(str(name))):
                    names.add(name)
                case ast.Subscript(value=ast.Call(ast.Attribute(attr="define")), slice=ast.Constant(name)):
                    names.add(name)
    assert {"train-loop", "trainer", "processor", "service", "ask"} <= ids
    assert ids <= set(sources)
    assert {"make_trainer", "make_processor", "make_service", "ask_all_rows", "SYSTEMS"} <= names
    assert names <= defined


@pytest.mark.slow
def test_a_process_of_its_own_has_its_environment_and_ours_stays():
    environment, files = dict(os.environ), written()
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(common.alone, probe, env={"ONLY_THERE": "yes"})
        while not there.done():  # another thread may copy it at any time
            assert dict(os.environ) == environment
            time.sleep(0.05)
    # Ray reads its switches when it is imported, so the command line comes before.
    assert there.result() == {"ONLY_THERE": "yes", "PATH": os.environ["PATH"], "ray": False}
    assert written() == files, "importing a benchmark writes nothing"


def written():
    return {path: path.stat().st_mtime_ns for path in ROOT.glob("benchmarks/**/*.json")}


def probe():
    """In a process that imports all benchmarks."""
    for name in SCRIPTS:
        importlib.import_module(f"benchmarks.{name}")
    return {name: os.environ[name] for name in ("ONLY_THERE", "PATH")} | {"ray": "ray" in sys.modules}


@pytest.mark.slow
def test_an_error_in_a_process_of_its_own_is_one_line():
    with pytest.raises(RuntimeError, match=r"^FileNotFoundError: .*no-such-folder'$"):
        common.alone(os.listdir, "no-such-folder")


@pytest.mark.slow
def test_a_process_of_its_own_that_is_killed():
    with pytest.raises(RuntimeError, match="abort: its process ended"):
        common.alone(os.abort)


def test_a_candidate_that_fails_gives_its_gpu_back():
    started = accuracy.on_gpus(
        lambda name, gpu: f"{name} on {gpu}" if name != "broken" else 1 / 0, ["broken", "fine"], ["7"]
    )
    with pytest.raises(ZeroDivisionError):
        started["broken"].result()
    assert started["fine"].result() == "fine on 7"


def test_what_is_relative():
    level = dict.fromkeys(serving.MEASURES, 2.0) | {"concurrency": 8}
    found = {name: {"levels": [level | {}]} for name in (serving.VLLM, "profile")}
    found["profile"]["levels"][0]["request_throughput"] = 1.0
    serving.derive(found)
    assert found["profile"]["levels"][0]["of_vllm"]["request_throughput"] == 0.5

    one = {"losses": [[10, 4.0], [20, 2.0]], "samples_per_s": 3.0, "parameters": 5, "workers": 1}
    two = one | {"losses": [[10, 4.0], [20, 3.0], [30, 1.0]], "samples_per_s": 6.0, "workers": 2}
    train.derive(found := {"one": one, "two": two}, limit=1200.0, tokens=10.0)
    assert found["two"]["loss"] == {"samples": 20, "mean": 3.0}
    assert found["two"]["over_first"] == 2
    assert found["one"]["share_of_limit"] == found["two"]["share_of_limit"] == 0.5


def small(name, tmp_path, *options):
    """What the small run wrote, and what it printed."""
    path = tmp_path / "out.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--small", "--out", str(path), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text()), done.stdout


@pytest.mark.slow
def test_train_goes_on_after_a_candidate_that_fails(tmp_path):
    more = "packed: {packing: true, disable_gradient_checkpointing: true, input_casts: false}"
    options = ["--seconds", "1", "--warmup", "1", "--try", "broken: {no_such_key: 1}", "--try", more]
    written, shown = small("train", tmp_path, *options, "--candidates", "broken", "ancestor", "packed")
    found = written["candidates"]
    assert written["stamp"]["packages"]["ray"]
    assert "no_such_key" in found["broken"]["failed"]
    assert found["ancestor"]["checkpointing"]
    assert not found["packed"]["checkpointing"]
    for name in ("ancestor", "packed"):
        assert found[name]["tokens_per_s"] > found[name]["samples_per_s"] > 0
        assert found[name]["share_of_limit"] > 0  # the limit is one of GPUs: a CPU may add faster in float32
        assert found[name]["loss"]["mean"] > 0
        assert name in shown


@pytest.mark.slow
def test_batch(tmp_path):
    options = ["--tokens", "4", "--candidates", "plain vLLM", "profile"]
    written, shown = small("batch", tmp_path, *options)
    found = written["candidates"]
    assert found["profile"]["rows_per_s"] == pytest.approx(96 / found["profile"]["seconds"])
    assert found["profile"]["over_plain"] > 0
    assert "plain vLLM" in shown


@pytest.mark.slow
def test_serving(tmp_path):
    options = ["--levels", "1", "2", "--each", "1", "--port", "8123"]
    candidates = ["vllm serve", "Ray's defaults", "first piece at once"]
    written, _ = small("serving", tmp_path, *options, "--candidates", *candidates)
    found = written["candidates"]
    assert list(found) == candidates
    for each in found.values():
        assert [level["concurrency"] for level in each["levels"]] == [1, 2]
        assert all(level["p50_ttft_ms"] > 0 and level["request_throughput"] > 0 for level in each["levels"])
        assert each["levels"][0]["of_vllm"]


@pytest.mark.slow
def test_accuracy(tmp_path):
    changed = "short: {seed: 1, max_steps: 2}"
    written, shown = small("accuracy", tmp_path, "--try", changed, "--candidates", "short")
    found = written["candidates"]["short"]
    assert found["rows"] == {"train": 24, "val and test": 10}
    assert all(0 <= found[split] <= 1 for split in ("val", "test", "val, guided", "test, guided"))
    assert found["seconds"]["fine-tuning"] > 0
    assert written["test"]["mean"] == found["test"]
    assert "short" in shown


@pytest.mark.slow
def test_curve(tmp_path):
    written, _ = small("curve", tmp_path, "24", "--pitfalls")
    [(name, curve)] = written.items()
    assert name == "cpu, viggo, sample"
    assert [point["train_rows"] for point in curve["points"]] == [24]
    asked = json.loads((tmp_path / "out-pitfalls.json").read_text())
    assert list(asked["exact match"]) == ["as trained", "another layout", "sampled"]
    assert asked["test_rows"] == 6


@pytest.mark.production
def test_load(tmp_path):
    options = ["--levels", "1", "4", "--each", "2", "--clients", "4", "--hold-s", "5", "--port", "8125"]
    found, _ = small("load", tmp_path, *options)
    assert [level["concurrency"] for level in found["levels"]] == [1, 4]
    assert all(
        level["p50_ttft_ms"] < level["p50_e2el_ms"] < level["p99_e2el_ms"] for level in found["levels"]
    )
    running = [each["replicas"] for each in found["autoscaling"]["replicas"]]
    assert (running[0], max(running), running[-1]) == (1, 2, 1)
    for part in ("autoscaling", "killed replica", "rollout"):
        assert found[part]["failed"] == []
        assert found[part]["answered"] > 4
