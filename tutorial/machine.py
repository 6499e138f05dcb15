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
# Files of a group, by the controllers that /proc/self/cgroup names: version 2 has none, version 1 one a line.
LIMITS = {"": "memory.max", "memory": "memory.limit_in_bytes"}


def _groups(own: Path, mounted: Path, controllers: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Folders of this process's control group and of those above it, each with its controller."""
    with suppress(OSError):  # there are no control groups
        for line in own.read_text().splitlines():
            _, controller, name = line.split(":", 2)
            if controller in controllers:
                path = Path(name.lstrip("/"))
                for each in (path, *path.parents):
                    yield controller, mounted / controller / each


def cores(own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores, by this process's affinity and the quotas of its control groups (version 2)."""
    found = [len(os.sched_getaffinity(0))]
    for _, group in _groups(own, mounted, ("",)):
        with suppress(OSError, ValueError):  # it has no quota, or `max`
            quota, period = (group / "cpu.max").read_text().split()
            found.append(math.ceil(int(quota) / int(period)))
    return min(found)


def memory(own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory, used or not: the machine's, or the least limit of this process's control groups."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for controller, group in _groups(own, mounted, ("", "memory")):
        with suppress(OSError, ValueError):  # it has no limit, or `max`
            found.append(int((group / LIMITS[controller]).read_text()))
    return min(found)


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
