"""How far a call is: in a notebook, in a terminal, in a file; and that `make run` is never silent."""

import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
import transformers

from benchmarks import footprint
from tutorial import callbacks, machine, progress
from tutorial.files import Place

SILENCE_S = 15


WATCHED = """
import time
from tutorial import progress
counted = iter(range(1000))
with progress.watch(lambda: f"watched {next(counted)}", every_s=0.2):
    time.sleep(2)
    print("printed by the user")
    time.sleep(2)
print("the end, without a line's end", end="")
"""
SILENT = "import time; time.sleep(17)"
LEAVE = "import shutil; shutil.copy('measured.json', 'out/results.json')"


def test_a_run_is_never_silent(project):
    """In a terminal that can replace a line, in one that cannot, and without one."""
    project.write(WATCHED, SILENT, LEAVE)
    with ThreadPoolExecutor() as pool:  # at the same time, as each is silent for a while
        terminals = [
            pool.submit(footprint.show, project.command, cwd=project.root, env=os.environ | {"TERM": term})
            for term in ("xterm", "dumb")
        ]
        printed = subprocess.run(
            project.command, cwd=project.root, capture_output=True, text=True, check=True
        )
    for terminal in terminals:
        status, shown, silence = terminal.result()
        assert status == 0, shown
        assert silence < SILENCE_S
        for text in ("] 1. One", "] watched", "    printed by the user", "    the end, without a line's end"):
            assert text in shown
        assert "] 1. One: cell-1" in shown
        assert "done: out/README.ipynb" in shown.splitlines()[-1]
    lines = printed.stdout.splitlines()
    assert "    printed by the user" in lines
    assert sum(line.endswith("] 1. One: cell-1") for line in lines) == 1
    assert "\x1b" not in printed.stdout


def test_a_notebook_keeps_the_last_state_alone(project):
    assert project(WATCHED, LEAVE).returncode == 0
    saved = nbformat.read(project.root / "out" / "README.ipynb", as_version=4)
    display, *streams = saved.cells[3].outputs
    assert re.fullmatch(r"watched \d\d", display["data"]["text/plain"])
    assert list(display["data"]) == ["text/plain"]
    assert "".join(each["text"] for each in streams) == "printed by the user\nthe end, without a line's end"


FAILS = WATCHED.replace('print("printed by the user")', 'raise TutorialError("set X")')


def test_an_error_ends_the_line_and_stands_last(project):
    project.write("from tutorial import TutorialError" + FAILS, LEAVE)
    status, shown, _ = footprint.show(project.command, cwd=project.root, env=os.environ | {"TERM": "xterm"})
    assert status == 1
    *_, last = shown.splitlines()
    assert re.sub(r"\x1b\[\d*[A-Z]", "", last) == "TutorialError: set X"
    assert "watched" in shown


def test_what_is_watched_may_fail(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PRINTED_S", 0)

    def look():
        raise OSError("no answer\nof the storage")

    with progress.watch(look):
        pass
    assert "progress is unknown: no answer\n" in capsys.readouterr().out
    with pytest.raises(KeyError), progress.watch(lambda: "fine"):
        raise KeyError


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x, labels):
        return {"loss": ((self.layer(x) - labels) ** 2).mean()}


def train(note, folder, **options):
    """Train on 40 rows with transformers' own trainer, 4 rows a step."""
    rows = [{"x": torch.tensor([number / 40]), "labels": torch.tensor([1.0])} for number in range(40)]
    args = transformers.TrainingArguments(
        folder,
        per_device_train_batch_size=4,
        num_train_epochs=1,
        logging_steps=2,
        save_steps=5,
        report_to=[],
        use_cpu=True,
    )
    called = [callbacks.Progress(note, every_s=0)]
    trainer = transformers.Trainer(Regression(), args, train_dataset=rows, callbacks=called)
    trainer.train(**options)


def lines_of(watched, monkeypatch):
    """The lines that a context shows at once."""
    looks = []
    monkeypatch.setattr(progress, "watch", looks.append)
    watched()
    return looks[0]


def test_steps_of_the_training(store, tmp_path, monkeypatch):
    note, rows = store.place / progress.NOTE, {"data": {"used": {"train": 40}}}
    look = lines_of(lambda: progress.around("fine-tuning", store.place, rows), monkeypatch)
    assert re.fullmatch(r"fine-tuning: the workers start, 00:0\d", look())
    train(note, tmp_path)
    assert re.fullmatch(
        r"fine-tuning █{5} 10 of 10 steps, 00:\d\d, loss \d\.\d{3}, \d+\.\d rows/s",
        look(),
    )
    # A run that is resumed starts with the note of the earlier one, and counts from the checkpoint.
    look = lines_of(lambda: progress.around("fine-tuning", store.place, rows), monkeypatch)
    assert "the workers start" in look()
    train(note, tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert "10 of 10" in look()
    seen = json.loads(note.read())
    assert (seen["first_step"], seen["first_epoch"], seen["step"]) == (5, 0.5, 10)
    monkeypatch.setattr(progress, "STALLED_S", -1)
    note.write(note.read().replace(b'"step": 10', b'"step": 7'))
    assert re.search(r" 7 of 10 .* no step for 00:00$", look())


def test_a_storage_that_fails_does_not_stop_the_training(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    train(Place.of(str(tmp_path / "file" / "progress.json")), tmp_path / "out")
    assert "progress is not noted: " in caplog.text


def test_rows_of_the_batch_stage(store, tmp_path, monkeypatch):
    place = store.place / "progress"

    def write(name, count):
        pd.DataFrame({"id": range(count)}).to_parquet(tmp_path / "file")
        (place / name).write((tmp_path / "file").read_bytes())

    look = lines_of(lambda: progress.around("batch inference", place, {}), monkeypatch)
    assert re.fullmatch(r"batch inference: the engine starts and answers, 00:0\d", look())
    write("questions/a.parquet", 60)
    assert re.fullmatch(r"batch inference: 0 of 60 rows, the engine starts and answers, 00:0\d", look())
    write("answers/a.parquet", 32)
    assert " 32 of 60 rows, " in look()
    (place / "answers/b.parquet").write(b"PAR1 is being written")
    assert " 32 of 60 rows, " in look()
    resumed = lines_of(lambda: progress.around("batch inference", place, {}), monkeypatch)
    assert "32 of 60 rows, the engine starts" in resumed()
    write("answers/b.parquet", 28)
    for each in (look, resumed):
        assert "batch inference █████ 60 of 60 rows, " in each()


def test_time_left_does_not_count_the_start_of_the_engine(store, tmp_path, monkeypatch):
    place, clock = store.place / "slow-start", SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def after(seconds, name, count):
        pd.DataFrame({"id": range(count)}).to_parquet(tmp_path / "file")
        (place / name).write((tmp_path / "file").read_bytes())
        clock.now = float(seconds)
        return look()

    look = lines_of(lambda: progress.around("batch inference", place, {}), monkeypatch)
    after(0, "questions/a.parquet", 60)
    assert after(100, "answers/a.parquet", 20).endswith("20 of 60 rows, ? left")
    assert after(110, "answers/b.parquet", 20).endswith("40 of 60 rows, 00:10 left, 2.0 rows/s")
    assert after(120, "answers/c.parquet", 20).endswith("60 of 60 rows, 02:00, 0.5 rows/s")


STEPS = (
    r"fine-tuning: the workers start",
    r"fine-tuning .* \d+ of \d+ steps, \d\d:\d\d left, loss \d.*rows/s",
)
ROWS = (r"batch inference: 0 of \d+ rows, the engine starts", r"batch inference .* \d+ of \d+ rows, ")
REPLICAS = (r"online serving: deploying, .*LLMServer 1 starting", r"online serving: running")


@pytest.mark.slow
def test_a_whole_run_in_8_gib():
    """From the installation to the end."""
    found = footprint.measure("run", 8, **footprint.SMALL)
    assert found["silence_s"] < SILENCE_S
    assert found["killed"] == 0
    assert found["peak_gib"] < machine.MEMORY / 2**30
    for each in (r"\] Install: .venv", *STEPS, *ROWS, *REPLICAS):
        assert re.search(each, found["shown"]), each
