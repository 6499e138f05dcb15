"""Estimates of GPU memory against what was measured, and what a GPU that is too small is told."""

import json
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import ROOT
from tutorial import gpus, recipe
from tutorial.settings import Settings, read_yaml

LAYERS = 28
WORDS, HIDDEN, INTERMEDIATE, KEYS = 152064, 3584, 18944, 512  # Qwen2.5-7B's
LINEAR = {"q": (HIDDEN, HIDDEN), "k": (KEYS, HIDDEN), "v": (KEYS, HIDDEN), "o": (HIDDEN, HIDDEN)}
LINEAR |= {"gate": (INTERMEDIATE, HIDDEN), "up": (INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}
QWEN = gpus.Shape(
    linear=LAYERS * sum(a * b for a, b in LINEAR.values()),
    others=2 * WORDS * HIDDEN,
    sides=LAYERS * sum(map(sum, LINEAR.values())),
    hidden=HIDDEN,
    layers=LAYERS,
    vocabulary=WORDS,
    cached=LAYERS * 2 * KEYS,
)
L4, DESK = gpus.Gpu(22.5, 22.1), gpus.Gpu(12.0, 11.6)


def model(folder, layers=2):
    """A folder with a small model's weights: half a GiB of embeddings would be the 7B's."""
    found = {
        f"model.layers.{n}.{name}_proj.weight": np.zeros((max(rows // 64, 1), columns // 64), np.float16)
        for n in range(layers)
        for name, (rows, columns) in LINEAR.items()
    }
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        found[name] = np.zeros((WORDS // 64, HIDDEN // 64), np.float16)
    save_file(found | {"model.norm.weight": np.zeros(HIDDEN // 64, np.float16)}, folder / "model.safetensors")
    return folder


def test_the_shapes_are_read_from_the_heads_of_the_files(tmp_path):
    found = gpus.shape(model(tmp_path))
    assert (found.layers, found.hidden, found.vocabulary) == (2, HIDDEN // 64, WORDS // 64)
    assert found.cached == 2 * 2 * KEYS // 64
    assert found.sides == 2 * QWEN.sides // LAYERS // 64
    assert found.linear == 2 * QWEN.linear // LAYERS // 64**2
    assert found.others == 2 * WORDS * HIDDEN // 64**2 + HIDDEN // 64


def measured():
    base = read_yaml(ROOT / "lora_sft_ray.yaml") | {"neat_packing": False}
    for name in ("train-h200", "train-h100-neat", "train-h100-qlora"):
        found = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        for each, candidate in found["candidates"].items():
            if "casts" not in each:  # a recipe cannot switch those off
                yield pytest.param(
                    base | candidate["overrides"], candidate["device_gib"], id=f"{name} {each}"
                )


@pytest.mark.parametrize(("args", "gib"), measured())
def test_training_takes_about_what_was_measured(args, gib):
    assert gpus.training_gib(QWEN, args, row_tokens=360) == pytest.approx(gib, rel=0.1)


def test_the_recipes_fit_the_gpus_that_they_are_for():
    for name, gpu in (("lora_sft_ray.yaml", L4), ("lora_sft_ray_12gb.yaml", DESK)):
        assert gpus.training_gib(QWEN, recipe.load(ROOT / name)[0], 360) < gpu.free, name


def test_the_profiles_engines_fit_the_gpus_that_they_are_for():
    for name, gpu in (("gpu", L4), ("gpu-12gb", DESK)):
        engine = Settings(_env_file=None, profile=name).choose_profile({}).engine
        assert gpus.engine_gib(QWEN, engine, 8) < engine["gpu_memory_utilization"] * gpu.total, name


@pytest.fixture
def qwen(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "shape", lambda folder: QWEN)
    return tmp_path / "Qwen2.5-7B-Instruct"


def test_a_gpu_too_small_for_the_recipe_is_told_which_one_fits(qwen):
    args = recipe.load(ROOT / "lora_sft_ray.yaml")[0]
    assert gpus.lacks(qwen, args, L4) == ""
    said = gpus.lacks(qwen, args, DESK)
    assert said.startswith("training Qwen2.5-7B-Instruct needs about 2")
    assert "11.6 of 12.0 GiB are free; set RECIPE=lora_sft_ray_12gb.yaml (about " in said
    said = gpus.lacks(qwen, args, gpus.Gpu(4.0, 3.9))
    assert said.endswith("3.9 of 4.0 GiB are free; set MODEL to a smaller one, or take a larger GPU")


def test_a_gpu_too_small_for_the_engine_is_told_what_fits(qwen):
    engine = Settings(_env_file=None, profile="gpu").choose_profile({}).engine
    assert gpus.engine_lacks(qwen, engine, L4, 8) == ""
    said = gpus.engine_lacks(qwen, engine, gpus.Gpu(16.0, 15.6), 8)
    assert "gpu_memory_utilization 0.9 is 14.4 of 16.0 GiB; add quantization: fp8 (about " in said
    said = gpus.engine_lacks(qwen, engine, gpus.Gpu(22.5, 9.0), 8)
    assert "is 20.2 of 22.5 GiB, and 9.0 GiB are free; end what uses the GPU" in said


class NVML(SimpleNamespace):
    """The functions of nvidia-ml-py that are asked, for two GPUs."""

    NVMLError = type("NVMLError", (Exception,), {})
    GPUS: ClassVar = {0: (24, 20), 1: (12, 11), "GPU-b": (12, 11)}

    def __init__(self, driver=True):
        super().__init__(driver=driver)

    def nvmlInit(self):
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    nvmlShutdown = staticmethod(lambda: None)
    nvmlDeviceGetCount = staticmethod(lambda: 2)
    nvmlDeviceGetHandleByIndex = nvmlDeviceGetHandleByUUID = staticmethod(lambda name: NVML.GPUS[name])

    def nvmlDeviceGetMemoryInfo(self, found):
        return SimpleNamespace(total=found[0] * gpus.GIB, free=found[1] * gpus.GIB)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, [(24, 20), (12, 11)]), ("1", [(12, 11)]), ("GPU-b,0", [(12, 11), (24, 20)]), ("", [])],
)
def test_a_process_sees_the_gpus_that_it_may_use(monkeypatch, visible, expected):
    monkeypatch.setitem(sys.modules, "pynvml", NVML())
    monkeypatch.setattr(gpus, "find_spec", lambda name: name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.visible() == expected


def test_a_machine_without_the_driver_or_the_package_has_no_gpu(monkeypatch):
    monkeypatch.setattr(gpus, "find_spec", lambda name: None)
    assert gpus.visible() == []
    monkeypatch.setitem(sys.modules, "pynvml", NVML(driver=False))
    monkeypatch.setattr(gpus, "find_spec", lambda name: name)
    assert gpus.visible() == []
