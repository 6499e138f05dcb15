import json
import threading
import time

import pytest
from ray.data.exceptions import ExecutionTimeoutError
from ray.train import WorkerGroupError

from tutorial import TutorialError, stage

RAYS_THREAD = "ray_listen_error_messages"  # that tests/test_cluster.py sees print, or not


def test_a_report_of_many_lines_becomes_one(tmp_path):
    report = WorkerGroupError("two\nlines", {0: ValueError("a traceback\nits last line")})
    with (
        pytest.raises(TutorialError, match=r"^fine-tuning: ValueError: its last line; set X$") as error,
        stage.in_one_line("fine-tuning", "set X", tmp_path / "none", late_s=0),
    ):
        raise report
    assert error.value.__cause__ is report


def test_what_ray_reports_after_the_error_is_not_printed(capsys):
    def report():
        time.sleep(0.3)
        print("(raylet) A worker died")

    late = threading.Thread(target=report, name=RAYS_THREAD)
    late.start()
    with pytest.raises(TutorialError), stage.in_one_line("batch", "set X", late_s=0.6):
        raise ExecutionTimeoutError("no progress")
    late.join()
    assert not capsys.readouterr().out


def test_everything_else_is_printed_at_once(capsys):
    with stage.in_one_line("batch", "set X"):
        print("mine")
        others = [threading.Thread(target=print, args=("theirs",)) for _ in range(3)]
        others.append(threading.Thread(target=print, args=("(raylet) A worker died",), name=RAYS_THREAD))
        for thread in others:
            thread.start()
            thread.join()
        assert capsys.readouterr().out == "mine\n" + 3 * "theirs\n"
    print("after")
    assert capsys.readouterr().out == "after\n"


def test_the_folder_that_has_the_files_is_named(tmp_path):
    message = rf"^batch: no progress; its files are kept in {tmp_path}; set X$"
    with (
        pytest.raises(TutorialError, match=message),
        stage.in_one_line("batch", "set X", tmp_path, late_s=0),
    ):
        raise ExecutionTimeoutError("no progress\nmore")


def test_the_folder_is_deleted_if_all_goes_well(tmp_path):
    (tmp_path / "work").mkdir()
    with stage.in_one_line("training", "set X", tmp_path / "work"):
        (tmp_path / "work" / "file").touch()
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_cell_itself_is_left_as_it_is():
    with pytest.raises(KeyError), stage.in_one_line("batch", "set X", late_s=0):
        raise KeyError("x")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("CUDA out of memory. Tried ...\nand more"), "out of memory"),
        (RuntimeError(), "RuntimeError: "),
        (RuntimeError("x" * 1000), "RuntimeError: " + "x" * 286),
        (TutorialError("set X"), "set X"),
    ],
)
def test_the_reason_is_one_line(error, line):
    assert stage.reason(error) == line


def test_results_are_stamped_with_what_made_them(tmp_path):
    stamp = stage.stamp({"CPU": 8.0, "GPU": 2.0, "accelerator_type:L4": 1.0, "node:10.0.0.1": 1.0})
    assert (stamp["machine"]["gpus"], stamp["machine"]["accelerators"]) == (2, ["L4"])
    assert {"ray", "torch", "llamafactory"} <= stage.versions().keys() == stamp["packages"].keys()
    assert "10.0.0.1" not in json.dumps(stamp)
    stage.write(tmp_path / "new" / "results.json", {"stamp": stamp, "text": "ü"})
    assert "ü" in (tmp_path / "new" / "results.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "new" / "results.json").read_text())["stamp"] == stamp
