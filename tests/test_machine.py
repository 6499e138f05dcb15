"""What a process may use of a machine."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tutorial import TutorialError, machine

TOTAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def groups(tmp_path):
    """Files as the kernel has them in /proc/self/cgroup (`own`) and below /sys/fs/cgroup."""

    def write(own, files=None):
        (tmp_path / "own").write_text(own)
        for name, content in (files or {}).items():
            path = tmp_path / "mounted" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path / "own", tmp_path / "mounted"

    return write


def test_cores_are_those_that_this_process_may_use(groups):
    """Not those of the machine, of which a container may have few."""
    one = f"import os; os.sched_setaffinity(0, [{min(os.sched_getaffinity(0))}])"
    command = [sys.executable, "-c", f"{one}; from tutorial import machine; print(machine.cores())"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "1\n"
    all_of_them = len(os.sched_getaffinity(0))
    assert machine.cores(*groups("0::/a/b\n")) == all_of_them
    unlimited = {"a/cpu.max": "max 100000", "a/b/cpu.max": "max 100000"}
    assert machine.cores(*groups("0::/a/b\n", unlimited)) == all_of_them
    assert machine.cores(*groups("0::/a/b\n", {"a/cpu.max": "50000 100000"})) == 1, "of the group above"
    assert machine.cores(ROOT / "no-such-file") == all_of_them


def test_memory_is_what_this_process_may_use(groups):
    assert machine.memory(*groups("0::/a/b\n")) == TOTAL
    assert machine.memory(*groups("0::/a/b\n", {"a/memory.max": "max"})) == TOTAL
    assert machine.memory(*groups("0::/a/b\n", {"a/b/memory.max": str(2**31)})) == 2**31
    assert machine.memory(*groups("0::/a/b\n", {"a/memory.max": str(2**30)})) == 2**30, "of the group above"
    version_1 = "5:cpu:/\n4:memory:/c\n0::/\n"
    assert machine.memory(*groups(version_1, {"memory/c/memory.limit_in_bytes": str(2**63 - 2**12)})) == TOTAL
    assert machine.memory(*groups(version_1, {"memory/c/memory.limit_in_bytes": str(2**29)})) == 2**29
    assert machine.memory(ROOT / "no-such-file") == TOTAL


def test_too_little_memory_is_one_line():
    with pytest.raises(
        TutorialError, match=r"has \d+\.\d GiB of memory, the run needs 1048576; use a larger one$"
    ):
        machine.check_memory(2**50)
    machine.check_memory()


@pytest.mark.parametrize(
    ("flags", "limit", "has"),
    [
        ("avx2 avx512f avx512_bf16", "", True),
        ("avx2 amx_bf16", "ALL", True),
        ("asimd bf16", "", True),  # Arm
        ("avx2 avx512f avx512_vnni", "", False),
        ("avx512_bf16", "AVX512_CORE_VNNI", False),  # oneDNN is told to leave them
    ],
)
def test_cores_without_bf16_are_known_by_their_flags(flags, limit, has, tmp_path, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\n")
    assert machine.has_bf16(tmp_path / "cpuinfo") == has
