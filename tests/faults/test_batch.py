"""The batch stage: a job that is killed and started again, an engine that dies or stops, rows that cannot be
answered. One engine each, real, with the base model alone."""

import time
from pathlib import Path

import pandas as pd
import pytest

from tests import cells

ROWS = 32
# Files of four answers each, four answered at a time: the stage lasts long enough to be hurt half way.
BY_FOURS = """
profile.processor["batch_size"] = profile.engine["max_num_seqs"] = 4
"""
SHORT = "run.task.max_tokens = 48"  # after the rows were checked: some answers are longer
BATCH = [*cells.SET_UP, BY_FOURS, *cells.PREPARE, SHORT, *cells.ASK]
POISON = """
for number, bad in ((3, ""), (5, None), (9, "word " * 3000)):
    rows["test"][number] = rows["test"][number] | {"input": bad}
"""


def answers(storage: Path, name: str) -> pd.DataFrame:
    """What is in the storage, with the file that each row is in."""
    files = sorted((storage / name / "answers").glob("*.parquet"))
    return pd.concat([pd.read_parquet(file).assign(file=file.name) for file in files] or [pd.DataFrame()])


def done(storage: Path, name: str) -> list[str]:
    """The files that Ray Data notes as done."""
    found = (storage / name / "answered").glob("*.parquet")
    return sorted(file.name for file in found if ".pending." not in file.name)


@pytest.mark.faults
def test_a_job_that_is_killed_goes_on(drive, seen, tmp_path):
    env = {"STORAGE": str(tmp_path), "RUN_NAME": "batch", "TEST_ROWS": str(ROWS)}
    run = drive([*BATCH, *cells.END], **env)
    run.wait_for(lambda: done(tmp_path, "batch"))
    run.process.kill()
    start = time.monotonic()
    run.process.wait()
    run.all_gone()
    before, noted = answers(tmp_path, "batch"), done(tmp_path, "batch")
    assert 0 < len(noted) < ROWS / 4, "it was killed half way"

    again = drive([*BATCH, *cells.END], RESUME="1", **env)
    again.wait_for(lambda: len(done(tmp_path, "batch")) > len(noted))
    took = time.monotonic() - start
    again.end()
    after = answers(tmp_path, "batch")
    assert sorted(after["id"]) == list(range(ROWS)), "every row once"
    kept = before[before["file"].isin(after["file"])]
    assert len(kept) >= 4 * len(noted), "what was done stays"
    assert set(after["id"]) - set(kept["id"]) == set(after[~after["file"].isin(before["file"])]["id"])
    promise = "RESUME=1 answers the rows that have no answer yet, and no other"
    what = f"{ROWS} of {ROWS} rows once, {len(kept)} of them from before"
    seen("batch inference", "the notebook's own process, half way: SIGKILL", promise, what, took)


@pytest.mark.faults
def test_the_engine_is_killed_and_some_rows_are_poison(drive, seen, tmp_path):
    env = {"STORAGE": str(tmp_path), "RUN_NAME": "engine", "TEST_ROWS": str(ROWS)}
    run = drive([*cells.SET_UP, BY_FOURS, *cells.PREPARE, POISON, SHORT, *cells.ASK, *cells.END], **env)
    run.wait_for(lambda: done(tmp_path, "engine"))
    [engine] = run.processes("VLLM::EngineCore")
    known = done(tmp_path, "engine")
    engine.kill()
    start = time.monotonic()
    run.wait_for(lambda: len(done(tmp_path, "engine")) > len(known))
    took = time.monotonic() - start
    run.end()
    after = answers(tmp_path, "engine").set_index("id").sort_index()
    assert list(after.index) == list(range(ROWS)), "every row once"
    failed = after[after["error"] != ""]
    assert list(failed.index) == [3, 5, 9]
    assert failed["error"][3] == "input: a text is needed, not ''"
    assert failed["error"][5] == "input: a text is needed, not None"
    assert "1024" in failed["error"][9], "the engine's own words: longer than max_model_len"
    assert (after.drop(failed.index)["answer"] != "").all()
    what = f"{ROWS} of {ROWS} rows once"
    seen("batch inference", "the engine's process: SIGKILL", "Ray Data starts it again", what, took)
    what = f"3 errors in their rows, {ROWS - 3} rows answered"
    promise = "its error is in its row, the others are answered"
    seen("batch inference", "rows that are empty, no text, or far too long", promise, what, None)


@pytest.mark.faults
def test_an_engine_that_stands_still(drive, seen, tmp_path):
    env = {"STORAGE": str(tmp_path), "RUN_NAME": "still", "TEST_ROWS": str(ROWS), "BATCH_TIMEOUT_S": "60"}
    run = drive([*BATCH, *cells.END], **env)
    run.wait_for(lambda: done(tmp_path, "still"))
    [engine] = run.processes("VLLM::EngineCore")
    engine.suspend()
    start = time.monotonic()
    line = run.end(1)
    took = time.monotonic() - start
    assert line.startswith("TutorialError: batch inference: Dataset execution made no progress"), run.said()
    run.all_gone()
    promise = "BATCH_TIMEOUT_S (60 s here) without progress ends in one line"
    seen("batch inference", "the engine's process: SIGSTOP", promise, "one line, no process left", took)
