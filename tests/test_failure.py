import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from ray.data.exceptions import ExecutionTimeoutError
from ray.train import WorkerGroupError

from tests.conftest import ROOT
from tutorial import TutorialError, failure, sabotage


def test_a_report_of_many_lines_becomes_one(tmp_path):
    report = WorkerGroupError("two\nlines", {0: ValueError("a traceback\nits last line")})
    with (
        pytest.raises(TutorialError, match=r"^fine-tuning: ValueError: its last line; set X$") as error,
        failure.in_one_line("fine-tuning", "set X", tmp_path / "none"),
    ):
        raise report
    assert error.value.__cause__ is report


def test_what_ray_reports_after_the_error_is_not_printed(capsys):
    def report():
        time.sleep(0.5)
        print("(raylet) A worker died")

    late = threading.Thread(target=report)
    late.start()
    with pytest.raises(TutorialError), failure.in_one_line("batch", "set X"):
        raise ExecutionTimeoutError("no progress")
    late.join()
    assert not capsys.readouterr().out


def test_the_folder_that_has_the_files_is_named(tmp_path):
    message = rf"^batch: no progress; its files are kept in {tmp_path}; set X$"
    with pytest.raises(TutorialError, match=message), failure.in_one_line("batch", "set X", tmp_path):
        raise ExecutionTimeoutError("no progress\nmore")


def test_an_error_of_the_cell_itself_is_left_as_it_is():
    with pytest.raises(KeyError), failure.in_one_line("batch", "set X"):
        raise KeyError("x")


def test_memory_that_ran_out_is_said_in_three_words():
    assert failure.reason(RuntimeError("CUDA out of memory. Tried ...\nand more")) == "out of memory"


def test_files_are_deleted_if_all_goes_well_and_kept_if_not(tmp_path):
    def work_in(folder, fails):
        with failure.kept(str(folder)) as work:
            open(f"{work}/file", "w").close()
            if fails:
                raise OSError("gone")

    work_in(tmp_path / "good", fails=False)
    assert not list((tmp_path / "good").iterdir())
    with failure.in_one_line("training", "set X", tmp_path / "good"):
        pass
    assert not (tmp_path / "good").exists()
    with pytest.raises(OSError, match="gone"):
        work_in(tmp_path / "bad", fails=True)
    assert len(list((tmp_path / "bad").rglob("file"))) == 1


def test_files_are_kept_where_the_process_is_killed(tmp_path):
    code = f"""
import os
from tutorial import failure
with failure.kept({str(tmp_path / "killed")!r}) as work:
    open(work + "/file", "w").close()
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "killed").rglob("file"))) == 1


def test_a_note_of_a_kill_that_nobody_went_on_from_is_none(tmp_path):
    note, killed = tmp_path / "note.json", {"killed": {"step": 4, "time": 1.0}}
    assert sabotage.read(str(note)) == {}
    note.write_text(json.dumps(killed))
    assert sabotage.read(str(note)) == {}
    both = killed | {"resumed": {"step": 3, "time": 9.0}}
    note.write_text(json.dumps(both))
    assert sabotage.read(str(note)) == both
