"""`make run` on a small notebook, cells by their ids, and what `make test` measured with README.ipynb."""

import fcntl
import json
import os
import pty
import re
import shutil
import subprocess
import termios
import time

import nbformat
import pytest

from tests.conftest import MEASURED, ROOT
from tutorial import run

LEAVES = """
import matplotlib.pyplot as plt
import datasets, json, pathlib, shutil, tempfile
with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder, "a.json").write_text(json.dumps([{"a": "a row of the user's"}]))
    datasets.load_dataset("json", data_files=f"{folder}/a.json")
plt.plot([1, 2])
shutil.copy("measured.json", "out/results.json")
print("done", file=open("out/said", "w"))
"""


SLOW = [pytest.param(home, marks=pytest.mark.slow) for home in ("", None)]


@pytest.mark.parametrize("home", ["empty", "/dev/null", *SLOW])
def test_a_run_leaves_nothing_outside_of_its_project(project, tmp_path, home):
    home = str(tmp_path / home) if home == "empty" else home
    (tmp_path / "empty").mkdir()
    temporary = tmp_path / f"a{20 * ' long'} path"  # more than a socket's may have
    temporary.mkdir()
    ours = [name for name in os.environ if name.startswith(("HF_", "JUPYTER", "IPYTHON", "MPL", "XDG_"))]
    done = project(LEAVES, **dict.fromkeys(ours), HOME=home, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert (project.root / "out" / "said").read_text() == "done\n"
    assert [*(tmp_path / "empty").iterdir(), *temporary.iterdir()] == []
    assert {path.name for path in tmp_path.iterdir()} == {"empty", temporary.name, "my repo"}


MEASURE = "import shutil; shutil.copy('measured.json', 'out/results.json')"


def test_a_run_says_its_stages_and_scores_and_needs_no_docs(project):
    done = project(MEASURE)
    first, *table, last = done.stdout.splitlines()
    assert first.endswith(" s] 1. One")
    rows = [line.split() for line in table if line.strip(" ─")]
    assert rows == [
        ["6", "test", "rows", "base", "model", "fine-tuned"],
        ["exact", "match", "50%", "50%"],
        ["95%", "interval", "12%", "to", "88%", "12%", "to", "88%"],
        ["token", "F1", "62%", "62%"],
    ]
    assert last.endswith(" s] done: out/README.ipynb, and its figures in out/results.json")
    assert json.loads((project.root / "out" / "README.json").read_text()) == MEASURED


def test_what_was_found_in_the_rows_is_said_before_the_training(project):
    """The table of the cell `rows`, which a notebook displays, and no other cell's."""
    found = {"train": "question → prompt, answer → response"}
    table = "plots.sizes({'columns': %r, 'read': {'train': %d}})"
    project.write("from tutorial import plots", MEASURE, "", table % (found, 52), table % (found, 53))
    notebook = nbformat.read(project.root / "README.ipynb", as_version=4)
    notebook.cells[-2].id = "rows"
    nbformat.write(notebook, project.root / "README.ipynb")
    done = subprocess.run(project.command, cwd=project.root, capture_output=True, text=True, check=True)
    assert re.findall(r"^ train +question → prompt, answer → response +(\d+)", done.stdout, re.M) == ["52"]


def test_a_notebook_says_first_which_run_it_is(project):
    """And the page, which takes its outputs, does not."""
    assert project(MEASURE).returncode == 0
    first, second, *_ = nbformat.read(project.root / "out" / "README.ipynb", as_version=4).cells
    assert first.source.startswith(
        "**This run.** Task `mine`, rows of `mine.csv` (16 to train, 4 to validate"
    )
    assert "model `SmolLM2-135M-Instruct`, profile `cpu`" in first.source
    assert "written for ViGGO" in first.source
    assert second.source == "## 1. One"


def press_ctrl_c(project, *, after, later_s, env):
    """Run it in a terminal, with Ctrl-C when it has shown a text: its exit status, and what it said then."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        project.command,
        cwd=project.root,
        env=env,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
    )
    os.close(terminal)
    shown, before = b"", None
    while True:
        try:
            shown += os.read(screen, 2**16)
        except OSError:  # the last process that had the terminal has ended
            break
        if before is None and after in shown:
            time.sleep(later_s)
            os.write(screen, b"\x03")
            before = len(shown)
    os.close(screen)
    return process.wait(), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", shown[before:].decode())


WAITS = """
import atexit, pathlib, tempfile, time
pathlib.Path(tempfile.gettempdir(), "ray").mkdir()  # stands for what Ray leaves
atexit.register(pathlib.Path("out", "ended").touch)
print("waiting", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("after", [b"the kernel starts", b"waiting"])
def test_ctrl_c_is_one_line_and_leaves_nothing(project, tmp_path, after):
    (tmp_path / "tmp").mkdir()
    project.write(WAITS)
    env = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "TERM": "xterm"}
    status, said = press_ctrl_c(project, after=after, later_s=0.3, env=env)
    assert status == 130
    *_, last = filter(str.strip, said.splitlines())
    assert last == "interrupted; if STORAGE and RUN_NAME are set, RESUME=1 resumes the run"
    assert "Error" not in said
    assert "Traceback" not in said
    assert [*(tmp_path / "tmp").iterdir()] == []
    assert (project.root / "out" / "ended").exists() == (after == b"waiting"), "the kernel ended by itself"


def test_what_a_failed_run_leaves_is_kept(project, tmp_path):
    (tmp_path / "tmp").mkdir()
    log = "import pathlib, tempfile; pathlib.Path(tempfile.gettempdir(), 'log').touch(); 1/0"
    assert project(log, TMPDIR=str(tmp_path / "tmp")).returncode == 1
    assert [path.name for path in (tmp_path / "tmp").rglob("*") if path.is_file()] == ["log"]


def test_a_run_that_fails_leaves_no_figures(project):
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


def scores(results, system):
    """By metric."""
    return {name: each["value"] for name, each in results["batch"]["scores"][system].items()}


def test_the_adapter_is_better_than_the_base_model(results):
    """In each metric at least as good, and far better in those that a small run learns first."""
    base, tuned = scores(results, "base model"), scores(results, "fine-tuned")
    assert base["exact match"] <= 0.05
    gained = {metric: tuned[metric] - base[metric] for metric in base}
    assert min(gained.values()) >= 0, gained
    assert max(gained.values()) >= 0.5, gained


def test_guided_answers_are_valid(results):
    """Not all: a value may run until the limit of tokens, and an attribute may come twice."""
    if "fine-tuned, guided" not in results["batch"]["scores"]:
        pytest.skip(f"the task {results['task']!r} has no grammar")
    guided, free = scores(results, "fine-tuned, guided"), scores(results, "fine-tuned")
    one = 1.01 / results["data"]["used"]["test"]  # a near tie of two tokens may decide one answer
    assert guided["valid answers"] >= free["valid answers"]
    assert guided["exact match"] >= free["exact match"] - one


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
    env = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}  # of `make test`
    env |= {"NOTES": str(tmp_path / "notes"), "HOME": home, "PYTHON": str(program)}
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
