"""The locks resolve where they say they do. Asks the package index for metadata, installs nothing."""

import os
import re
import subprocess
import tempfile

import pytest

from tests.conftest import ROOT


def resolve(*args):
    command = ["uv", "pip", "install", "--dry-run", "--system", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory() as empty:  # and it stays so
        command += ["--target", empty]
        done = subprocess.run([*command, *args], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_cpu_lock(python):
    lock = (ROOT / "requirements" / "cpu.lock").read_text()
    assert not re.search(r"^(nvidia|cuda|triton|gradio|torchvision|torch)\b", lock, re.MULTILINE)
    resolve(
        "--no-deps",
        "--require-hashes",
        "-r",
        "requirements/cpu.lock",
        "--python-version",
        python,
        "--python-platform",
        "x86_64-manylinux_2_35",
    )


def test_the_gpu_set():
    resolve(
        "-r", "requirements.txt", "--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_35"
    )


def test_the_image_holds_what_requirements_name():
    image = re.search(r"^FROM (\S+):(\d\S+)-py312-cu130$", (ROOT / "containerfile").read_text(), re.MULTILINE)
    pins = dict(
        re.findall(r"^([\w-]+)(?:\[.*\])?==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    )
    lock = dict(
        re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements" / "cpu.lock").read_text(), re.MULTILINE)
    )
    assert image[2] == pins["ray"] == lock["ray"]
    for same in ("llamafactory", "transformers", "peft", "datasets", "accelerate", "trl"):
        assert pins[same] == lock[same]


def test_no_registry_is_named():
    """But PyTorch's own, which alone holds its CPU build."""
    for path in [
        *ROOT.glob("requirements/*"),
        ROOT / "requirements.txt",
        ROOT / "Makefile",
        ROOT / "containerfile",
    ]:
        hosts = set(re.findall(r"(?:https?|file)://([^/\s]*)", path.read_text()))
        assert hosts <= {"download.pytorch.org"}, path.name


def test_environment_size():
    """At most 3.2 GB: the bytes of its files, each once."""
    assert (ROOT / ".venv").is_dir()
    seen, size = set(), 0
    for folder, _, files in os.walk(ROOT / ".venv"):
        for file in files:
            info = os.lstat(os.path.join(folder, file))
            if info.st_ino not in seen:
                seen.add(info.st_ino)
                size += info.st_size
    assert size <= 3.2e9
