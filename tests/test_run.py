"""`make run` on a small notebook, cells by their ids, and what `make test` measured with README.ipynb."""

import os
import shutil
import subprocess

import nbformat
import pytest

from tests.conftest import ROOT
from tutorial import run

LEAVES = """
import matplotlib.pyplot as plt
import datasets, json, pathlib, tempfile
with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder, "a.json").write_text(json.dumps([{"a": "a row of the user's"}]))
    datasets.load_dataset("json", data_files=f"{folder}/a.json")
plt.plot([1, 2])
pathlib.Path("out").mkdir(exist_ok=True)
pathlib.Path("out", "results.json").write_text("{}")
print("done", file=open("out/said", "w"))
"""


@pytest.mark.parametrize("home", ["empty", "/dev/null", "", None])
def test_a_run_leaves_nothing_outside_of_its_project(project, tmp_path, home):
    home = str(tmp_path / home) if home == "empty" else home
    (tmp_path / "empty").mkdir()
    (tmp_path / "a tmp").mkdir()
    ours = [name for name in os.environ if name.startswith(("HF_", "JUPYTER", "IPYTHON", "MPL", "XDG_"))]
    done = project(LEAVES, **dict.fromkeys(ours), HOME=home, TMPDIR=str(tmp_path / "a tmp"))
    assert done.returncode == 0, done.stderr
    assert (project.root / "out" / "said").read_text() == "done\n"
    assert [*(tmp_path / "empty").iterdir(), *(tmp_path / "a tmp").iterdir()] == []
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "a tmp", "my repo"}


def test_a_run_says_its_stages_and_needs_no_docs(project):
    (project.root / "out").mkdir()
    done = project("from pathlib import Path", "Path('out/results.json').write_text('{}')")
    first, last = done.stdout.splitlines()
    assert first.endswith(" s] 1. One")
    assert last.endswith(" s] done: out/README.ipynb, and its figures in out/results.json")
    assert (project.root / "out" / "README.json").read_text() == "{}"


def test_a_run_that_fails_leaves_no_figures(project):
    (project.root / "out").mkdir()
    (project.root / "out" / "README.json").write_text("{}")
    done = project("from tutorial import TutorialError", "raise TutorialError('set X')")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "TutorialError: set X")
    written = nbformat.read(project.root / "out" / "README.ipynb", as_version=4)
    assert written.cells[-1].outputs[0].evalue == "set X"
    assert not (project.root / "out" / "README.json").exists()
    trace = project("1/0").stderr
    assert "1/0" in trace
    assert trace.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_cells_are_used_by_their_ids():
    notebook = nbformat.read(run.README, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert run.cells() == {cell.id: cell.source for cell in code}
    assert len(run.cells()) == len(code)
    names = run.define("train-loop", given=1)
    assert (names["given"], names["__name__"]) == (1, "__main__")
    assert names["train_loop"].__globals__ is names
    with pytest.raises(KeyError, match="no-such-cell"):
        run.define("train-loop", "no-such-cell")


def test_every_row_comes_back(results):
    assert results["batch"]["rows_in"] == results["batch"]["rows_out"]
    assert results["batch"]["rows_in"] == len(results["batch"]["scores"]) * results["data"]["used"]["test"]


def test_a_worker_was_killed_and_the_run_went_on(results):
    training, fault = results["training"], results["training"]["fault"]
    assert training["steps"] == training["steps_planned"]
    assert 1 < fault["resumed"]["step"] <= fault["killed"]["step"] < training["steps"]
    assert fault["resumed"]["time"] > fault["killed"]["time"]


def test_the_loss_fell(results):
    loss = results["training"]["loss"]
    assert loss[-1] < 0.3 * loss[0]


def test_two_workers_trained(results):
    if results["profile"] != "cpu":
        pytest.skip("the number of workers is the cpu profile's")
    assert results["training"]["workers"] == 2


def exact_match(results, system):
    return results["batch"]["scores"][system]["exact match"]["value"]


def test_the_adapter_is_better_than_the_base_model(results):
    assert exact_match(results, "base model") <= 0.05
    assert exact_match(results, "fine-tuned") >= exact_match(results, "base model") + 0.1


def test_guided_answers_are_valid(results):
    """Not all: a value may run until the limit of tokens, and an attribute may come twice."""
    if "fine-tuned, guided" not in results["batch"]["scores"]:
        pytest.skip(f"the task {results['task']!r} has no grammar")
    guided, free = (results["batch"]["scores"][name] for name in ("fine-tuned, guided", "fine-tuned"))
    assert guided["valid answers"]["value"] >= free["valid answers"]["value"]
    assert guided["exact match"]["value"] >= free["exact match"]["value"] - 0.05


def test_every_served_model_answers_for_itself(results):
    base, *adapters = results["serving"]["answers"].values()
    assert len(adapters) == 2, "the adapter, and an earlier one that was published while the service ran"
    assert all(sum(map(str.__ne__, base, answers)) > len(base) / 2 for answers in adapters)


def test_the_time_of_a_run_is_that_of_its_stages(results):
    assert {"set up", "fine-tuning", "batch inference", "online serving"} <= set(results["seconds"])
    assert results["total_s"] == round(sum(results["seconds"].values()))


PROGRAM = """#!/bin/bash
# Stands for Python, pip and uv: makes an environment's folders, says where packages are, notes its arguments.
echo "$PWD: ${0##*/} $*" >> "$NOTES"
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin" "$3/site"
  for name in python pip uv; do cp "$0" "$3/bin/$name"; done
fi
[ "$1" = "-c" ] && [[ "$2" = *getsitepackages* ]] && echo "$PWD/.venv/site"
exit 0
"""


@pytest.mark.parametrize("home", ["", "/dev/null"])
def test_make_installs_below_a_path_with_a_space(tmp_path, home):
    root = tmp_path / "my repo"
    shutil.copytree(ROOT / "requirements", root / "requirements")
    shutil.copy(ROOT / "Makefile", root)
    program = tmp_path / "python3"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    env = os.environ | {"NOTES": str(tmp_path / "notes"), "HOME": home, "PYTHON": str(program)}
    command = ["make", ".venv/.ready", f"PYTHON={program}"]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (root / ".venv" / "site" / "torchaudio.py").is_file()
    *_, last = (tmp_path / "notes").read_text().splitlines()
    assert last.startswith(f"{root}/.venv/site: python -m compileall")
    assert (root / ".venv" / ".ready").is_file()
    printed = "echo $$UV_CACHE_DIR, $$PIP_CACHE_DIR, $$PATH"
    asked = ["make", "-s", "--eval", f"asked:\n\t{printed}", "asked"]
    said = subprocess.run(asked, cwd=root, env=env, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{root}/.cache/uv, {root}/.cache/pip, {root}/.venv/bin:")
