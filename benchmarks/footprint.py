"""What `make run` or `make test` needs of a machine: memory, disk and patience. Run it as root:

    python -m benchmarks.footprint [--limit-gib 8] [--small] run

The target is made in a fresh clone with an empty HOME and TMPDIR, in a pseudo-terminal, and in a control
group with this limit of memory. Writes JSON: the peak of memory that cannot be reclaimed, and with
the page cache; processes that the kernel killed for want of memory; the peak of disk below each of the three
folders; the longest time in seconds in which the terminal showed nothing.
"""

import argparse
import json
import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from tutorial import stage
from tutorial.settings import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "footprint-cpu.json"
SMALL = {"TRAIN_ROWS": "48", "VAL_ROWS": "8", "TEST_ROWS": "8"}
# By the version of control groups: the files of the limit, of memory in use and of kills, and the lines of
# memory.stat that cannot be reclaimed.
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", ("total_rss", "total_shmem")),
    2: ("memory.max", "memory.current", "memory.events", ("anon", "shmem")),
}


class Group:
    """A control group below this process's own, with a limit in bytes. `enter` stands before a command in it.

    Raises:
        OSError: this user may not make one.
    """

    def __init__(self, limit: int):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = {controller: name for _, controller, name in (line.split(":", 2) for line in lines)}
        version, mounted = (1, "/sys/fs/cgroup/memory") if "memory" in own else (2, "/sys/fs/cgroup")
        self.folder = Path(f"{mounted}{own['memory' if version == 1 else '']}", f"footprint-{os.getpid()}")
        most, self._usage, self._events, self._held = FILES[version]
        self.enter = ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(self.folder / "cgroup.procs")]
        self.folder.mkdir()
        (self.folder / most).write_text(str(limit))
        self.held = self.usage = 0

    def look(self) -> None:
        """Note the peaks."""
        stat = self._numbers("memory.stat")
        self.held = max(self.held, sum(stat[name] for name in self._held))
        self.usage = max(self.usage, int((self.folder / self._usage).read_text()))

    def kills(self) -> int:
        """Processes that the kernel has killed for want of memory."""
        return self._numbers(self._events)["oom_kill"]

    def _numbers(self, name: str) -> dict[str, int]:
        pairs = (line.split() for line in (self.folder / name).read_text().splitlines())
        return {key: int(value) for key, value in pairs}


def show(command: list[str], **options: Any) -> tuple[int, str, float]:
    """Run a command in a pseudo-terminal of its own: its exit status, what it showed, and the longest time in
    seconds in which it showed nothing."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, **options)
    os.close(terminal)
    shown, times = [], [time.monotonic()]
    while True:
        try:
            shown.append(os.read(screen, 2**16))
        except OSError:  # the last process that had the terminal has ended
            break
        times.append(time.monotonic())
    os.close(screen)
    silence = max(after - before for before, after in pairwise([*times, time.monotonic()]))
    return process.wait(), b"".join(shown).decode(errors="replace"), silence


def disk(folder: Path) -> int:
    """Bytes on disk below a folder, each file once."""
    command = ["du", "--summarize", "--block-size=1", str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()[0])


def measure(target: str, limit_gib: float, **env: str) -> dict[str, Any]:
    """Make a target in a fresh clone; what it needed.

    Raises:
        OSError: this user may not make a control group.
        SystemExit: the target failed; with the end of what it showed.
    """
    with tempfile.TemporaryDirectory(prefix="f-") as made:
        folders = {name: Path(made, name) for name in ("home", "tmp", "project")}
        folders["home"].mkdir()
        folders["tmp"].mkdir()
        subprocess.run(["git", "clone", "--quiet", ROOT, folders["project"]], check=True)  # noqa: S607
        env = (
            os.environ | {"HOME": str(folders["home"]), "TMPDIR": str(folders["tmp"]), "TERM": "xterm"} | env
        )
        group, over, peaks = Group(int(limit_gib * 2**30)), threading.Event(), dict.fromkeys(folders, 0)

        def follow() -> None:
            looked = 0.0
            while not over.wait(0.5):
                group.look()
                if time.monotonic() - looked > 20:
                    peaks.update({name: max(peaks[name], disk(each)) for name, each in folders.items()})
                    looked = time.monotonic()

        watcher = threading.Thread(target=follow, daemon=True)
        watcher.start()
        start = time.monotonic()
        try:
            status, shown, silence = show([*group.enter, "make", target], cwd=folders["project"], env=env)
        finally:
            over.set()
            watcher.join()
        seconds, kills = time.monotonic() - start, group.kills()
        group.folder.rmdir()
        if status:
            sys.exit(f"{shown}\nmake {target} failed after {seconds:.0f} s, {kills} processes were killed")
    return {
        "limit_gib": limit_gib,
        "peak_gib": round(group.held / 2**30, 2),
        "peak_with_cache_gib": round(group.usage / 2**30, 2),
        "killed": kills,
        "disk_gib": {name: round(size / 2**30, 2) for name, size in peaks.items()},
        "disk_total_gib": round(sum(peaks.values()) / 2**30, 2),
        "silence_s": round(silence, 1),
        "shown": shown,
    }


def main() -> None:
    """Measure a target, and keep what is known of the other."""
    parser = argparse.ArgumentParser("python -m benchmarks.footprint", description=__doc__)
    parser.add_argument("target", choices=["run", "test"])
    parser.add_argument("--limit-gib", type=float, default=8)
    parser.add_argument("--small", action="store_true", help="few rows, and JSON in out/")
    args = parser.parse_args()
    (ROOT / "out").mkdir(exist_ok=True)
    found = measure(args.target, args.limit_gib, **(SMALL if args.small else {}))
    (ROOT / "out" / f"footprint-{args.target}.log").write_text(found.pop("shown"))
    out = ROOT / "out" / RESULTS.name if args.small else RESULTS
    known = json.loads(out.read_text()) if out.is_file() else {}
    stage.write(out, known | {"stamp": stage.stamp({}), args.target: found})
    print(found)


if __name__ == "__main__":
    main()
