"""Cores, memory and disk that this process may use: those of the machine, or fewer if its control group or a
container says so."""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tutorial import TutorialError

MEMORY = 7 * 2**30  # bytes; a run of the cpu profile, see benchmarks/footprint.py
# Instruction sets without products of bf16, as oneDNN names them: ONEDNN_MAX_CPU_ISA may limit it to one.
WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
TOTAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes
# Files of a group, by the controllers that /proc/self/cgroup names: version 2 has none, version 1 one a line.
QUOTA, LIMIT = {"": "cpu.max"}, {"": "memory.max", "memory": "memory.limit_in_bytes"}


def _groups(files: dict[str, str], own: Path, mounted: Path) -> Iterator[list[str]]:
    """The words of such a file, for this process's control group and those above it, unless it says `max`."""
    with suppress(OSError):  # there are no control groups
        for line in own.read_text().splitlines():
            _, controller, name = line.split(":", 2)
            path = Path(name.lstrip("/"))
            for each in (path, *path.parents) if controller in files else ():
                with suppress(OSError):  # the group has no such file
                    words = (mounted / controller / each / files[controller]).read_text().split()
                    if words[0] != "max":
                        yield words


def cores(own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores, by this process's affinity and the quotas of its control groups (version 2)."""
    quotas = [math.ceil(int(quota) / int(period)) for quota, period in _groups(QUOTA, own, mounted)]
    return min([len(os.sched_getaffinity(0)), *quotas])


def memory(own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory, used or not: the machine's, or the least limit of this process's control groups."""
    limits = [int(limit) for [limit] in _groups(LIMIT, own, mounted)]
    return min([TOTAL, *limits])


def has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether these cores multiply numbers in bf16, and oneDNN may let them. If not, float32 is faster."""
    flags = {"avx512_bf16", "amx_bf16", "bf16"} & set(cpuinfo.read_text().split())
    return bool(flags) and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in WITHOUT_BF16


def check_memory(needed: int = MEMORY) -> None:
    """TutorialError if this process may use less memory than that, in bytes."""
    if (limit := memory()) < needed:
        has = f"{limit / 2**30:.1f} GiB of memory, the run needs {needed / 2**30:.0f}"
        raise TutorialError(f"this machine or container has {has}; use a larger one")


def check_disk(folder: str, setting: str, needed: int) -> None:
    """TutorialError if less than that, in bytes, is free in the folder that the setting names."""
    if (free := shutil.disk_usage(folder).free) < needed:
        has = f"{free / 2**30:.1f} GiB free, the run needs {needed / 2**30:.0f}"
        raise TutorialError(f"{folder}: {has}; set {setting} to a larger disk")
