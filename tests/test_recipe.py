import pytest
import yaml

from tests.conftest import ROOT
from tutorial import TutorialError, recipe

GPU, CPU = ROOT / "lora_sft_ray.yaml", ROOT / "lora_sft_ray_cpu.yaml"
# Model, sizes and precision; how many samples share a step is a size, and so is what follows from it.
MAY_DIFFER = {
    "model_name_or_path",
    "cutoff_len",
    "packing",
    "enable_liger_kernel",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "learning_rate",
    "logging_steps",
    "save_steps",
    "use_cpu",
    "disable_gradient_checkpointing",
    "ray",
}


def test_the_cpu_twin_changes_only_model_sizes_and_precision():
    gpu, cpu = (yaml.safe_load(path.read_text()) for path in (GPU, CPU))
    assert {key for key in gpu | cpu if gpu.get(key) != cpu.get(key)} <= MAY_DIFFER


@pytest.mark.parametrize("path", [GPU, CPU])
def test_the_ray_section_is_taken_out(path):
    args, ray = recipe.load(path)
    assert "ray" not in args
    assert set(ray) == recipe.RAY_KEYS
    assert isinstance(args["learning_rate"], float)  # YAML reads 1e-3 as a word


def test_a_pack_takes_no_row_of_its_own_length():
    assert recipe.longest_row({"cutoff_len": 8}) == 8
    assert recipe.longest_row({"cutoff_len": 8, "packing": True}) == 7


RAY = (
    "ray: {num_workers: 1, use_gpu: false, resources_per_worker: {}, max_failures: 0, num_to_keep: 1, "
    "env_vars: {}}"
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            f"{RAY}\nlora_rank: 8\ncutoff_len: 99\nlearning_rat: 0.1",
            "LLaMA-Factory does not know the key 'learning_rat'",
        ),
        ("ray: {num_wokers: 2}", "unknown key 'num_wokers' in `ray`"),
        ("ray: {}", "the key 'env_vars' is missing in `ray`"),
        (f"{RAY}\nlora_rank: 4", "lora_rank=4: vLLM serves 1, 8, 16"),
        (f"{RAY}\nlora_rank: 8", "the key 'cutoff_len' is missing"),
        ("a: [", "not YAML: line 2"),
        ("- a list", "not a mapping"),
    ],
)
def test_a_bad_recipe_is_named_in_one_line(tmp_path, line, message):
    path = tmp_path / "mine.yaml"
    path.write_text(line + "\n")
    with pytest.raises(TutorialError) as error:
        recipe.load(path)
    assert str(error.value).startswith("mine.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
