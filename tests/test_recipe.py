"""The recipe is checked whole before anything starts, and holds what all later cells need."""

import typing

import pytest
import yaml

from tests.conftest import ROOT
from tutorial import TutorialError, recipe

GPU, CPU = ROOT / "lora_sft_ray.yaml", ROOT / "lora_sft_ray_cpu.yaml"
# Model, sizes and precision; how many samples share a step is a size, and so is what follows from it.
MAY_DIFFER = {
    "model_name_or_path",
    "lora_target",  # how many modules
    "lr_scheduler_type",  # for few steps, as the next three: with the others it got fewer rows right
    "warmup_ratio",
    "adam_beta1",
    "adam_beta2",
    "cutoff_len",
    "packing",
    "neat_packing",
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
    "flash_attn",  # what computes attention
    "ray",
}
# The keys that LLaMA-Factory's own examples of LoRA share.
EXAMPLE = """
model_name_or_path: some/model
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: qwen3_nothink
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: saves/some-model/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none  # choices: [none, wandb, tensorboard, swanlab, mlflow]
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
"""
LAUNCHER = (
    "Ray Train runs as the section `ray` says: num_workers, resources_per_worker, env_vars; delete the key"
)
WHOLE = "every worker here holds the whole model (PyTorch's DDP); delete the key"
PLAIN = "the engines serve plain LoRA adapters only; delete the key"
ROWS = "the notebook writes the rows anew for each run; delete the key"
BATCH = "the batch stage answers the test rows; delete the key"
NO_GPU = "it needs a GPU, and training uses CPUs; delete the key"
DISAGREE = "use_cpu, ray.use_gpu and GPU in ray.resources_per_worker disagree"
NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer"
NO_NUMBER = "Input should be a valid number, unable to parse string as a number"
BEST = "a restarted worker has no earlier checkpoint to return to; delete the key"
BASE = "the engines do not have the base model that this adapter would need; delete the key"


@pytest.fixture
def load(tmp_path):
    """A function that loads a recipe from its text."""

    def from_text(text, **more):
        (tmp_path / "mine.yaml").write_text(text + "\n")
        return recipe.load(tmp_path / "mine.yaml", **more)

    return from_text


def test_the_cpu_twin_changes_only_model_sizes_and_precision():
    gpu, cpu = (yaml.safe_load(path.read_text()) for path in (GPU, CPU))
    assert {key for key in gpu | cpu if gpu.get(key) != cpu.get(key)} <= MAY_DIFFER


@pytest.mark.parametrize("path", [GPU, CPU])
def test_the_two_recipes_load_as_they_are_written(path):
    args, ray = recipe.load(path)
    written = yaml.safe_load(path.read_text())
    assert written.pop("ray") == ray
    assert written.items() <= args.items()
    assert args["use_cpu"] is not ray["use_gpu"]


def test_the_ranks_are_those_that_vllm_serves():
    from vllm.config.lora import MaxLoRARanks

    assert typing.get_args(MaxLoRARanks) == recipe.SERVED_RANKS


def test_a_pack_takes_no_row_of_its_own_length():
    assert recipe.longest_row({"cutoff_len": 8}) == 8
    assert recipe.longest_row({"cutoff_len": 8, "packing": True}) == 7
    assert recipe.longest_row({"cutoff_len": 8, "neat_packing": True}) == 7


def test_an_example_of_llamafactory_trains_as_it_is(load):
    args, ray = load(EXAMPLE, gpus=4)
    assert args["learning_rate"] == 1e-4
    assert args["lora_alpha"] == 16
    assert (args["dataset"], args["eval_dataset"]) == ("train", "val")
    assert args["logging_first_step"] is True
    assert args["template"] == "qwen3_nothink"
    assert ray["num_workers"] == 1
    assert ray["resources_per_worker"] == {"CPU": 1, "GPU": 1}
    args, ray = load(EXAMPLE, gpus=0)
    assert args["use_cpu"] is True
    assert ray["use_gpu"] is False
    assert ray["resources_per_worker"] == {"CPU": 1}


@pytest.mark.parametrize(
    ("keys", "filled_in"),
    [
        ("loraplus_lr_ratio: 16.0", {"loraplus_lr_ratio": 16.0}),
        ("val_size: 0.1\neval_strategy: steps\neval_steps: 500", {"val_size": 0.1}),
        ("eval_dataset: alpaca_en_demo\neval_strategy: epoch", {"eval_dataset": "val"}),
        ("quantization_bit: 4\nquantization_method: bnb", {"quantization_bit": 4}),
        ("use_rslora: true\nlora_dropout: 0.1\nneftune_noise_alpha: 5", {"use_rslora": True}),
        ("upcast_layernorm: true\nflash_attn: sdpa\noverwrite_cache: true", {"flash_attn": "sdpa"}),
        ("use_fast_tokenizer: false", {"use_fast_tokenizer": False}),
        ("neat_packing: true\nmask_history: true", {"neat_packing": True}),
        ("deepspeed: null\nfsdp: ''\nuse_dora: false\npissa_init: false", {}),
    ],
)  # fmt: skip
def test_what_the_examples_of_text_add_trains(load, keys, filled_in):
    args, _ = load(f"{EXAMPLE}{keys}", gpus=4)
    assert filled_in.items() <= args.items()
    assert ("eval_dataset" in args) != ("val_size" in filled_in)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("deepspeed: ds_z3_config.json", f"deepspeed='ds_z3_config.json': {WHOLE}"),
        ("fsdp: full_shard auto_wrap", f"fsdp='full_shard auto_wrap': {WHOLE}"),
        ("use_kt: true", f"use_kt=True: {WHOLE}"),
        ("ray_run_name: some-run", f"ray_run_name='some-run': {LAUNCHER}"),
        ("ray_storage_path: ./saves", f"ray_storage_path='./saves': {LAUNCHER}"),
        ("ray_num_workers: 4", f"ray_num_workers=4: {LAUNCHER}"),
        ("placement_strategy: PACK", f"placement_strategy='PACK': {LAUNCHER}"),
        ("resources_per_worker: {GPU: 1}", f"resources_per_worker={{'GPU': 1}}: {LAUNCHER}"),
        ("pissa_init: true\npissa_convert: true", f"pissa_init=True: {PLAIN}"),
        ("use_dora: true", f"use_dora=True: {PLAIN}"),
        ("additional_target: embed_tokens", f"additional_target='embed_tokens': {PLAIN}"),
        ("use_llama_pro: true", f"use_llama_pro=True: {PLAIN}"),
        ("adapter_name_or_path: saves/old", f"adapter_name_or_path='saves/old': {BASE}"),
        ("resize_vocab: true", f"resize_vocab=True: {BASE}"),
        ("add_special_tokens: <a>,<b>", f"add_special_tokens='<a>,<b>': {BASE}"),
        ("rope_scaling: linear", f"rope_scaling='linear': {BASE}"),
        ("mixture_of_depths: convert", f"mixture_of_depths='convert': {BASE}"),
        ("tokenized_path: saves/set", f"tokenized_path='saves/set': {ROWS}"),
        ("streaming: true", f"streaming=True: {ROWS}"),
        ("predict_with_generate: true", f"predict_with_generate=True: {BATCH}"),
        ("load_best_model_at_end: true", f"load_best_model_at_end=True: {BEST}"),
        ("early_stopping_steps: 3", "early_stopping_steps=3: a run trains all of its steps; delete the key"),
        ("seed: 42", "seed=42: the setting SEED says it; delete the key"),
        ("cpu_infer: 32", "LLaMA-Factory does not know the key 'cpu_infer'"),
        ("pakcing: 1", "LLaMA-Factory does not know the key 'pakcing'; did you mean 'packing'?"),
        ("use_badam: true", "Cannot use LoRA with GaLore, APOLLO or BAdam together."),
        ("mask_history: 1\ntrain_on_prompt: 1", "`mask_history` is incompatible with `train_on_prompt`."),
        ("val_size: 0.1\neval_dataset: other", "Cannot specify `val_size` if `eval_dataset` is not None."),
        ("lora_alpha: two", f"lora_alpha='two': {NO_INTEGER}"),
        ("weight_decay: true", f"weight_decay=True: {NO_NUMBER}"),
        ("eval_strategy: always", "eval_strategy='always': Input should be 'no', 'steps' or 'epoch'"),
        ("eval_dataset: x\nmax_grad_norm: [1]", "max_grad_norm=[1]: Input should be a valid number"),
        ("ray: [1]", "ray=[1]: a mapping of keys to values is needed"),
        ("ray: {num_wokers: 2}", "the section `ray` has no key 'num_wokers'; did you mean 'num_workers'?"),
        ("ray: {num_workers: two}", f"ray.num_workers: {NO_INTEGER}"),
        ("ray: {use_gpu: true}\nuse_cpu: true", DISAGREE),
        ("use_cpu: true\nray: {resources_per_worker: {GPU: 1}}", DISAGREE),
        ("use_cpu: true\nquantization_bit: 4", f"quantization_bit=4: {NO_GPU}"),
        ("use_cpu: true\nenable_liger_kernel: true", f"enable_liger_kernel=True: {NO_GPU}"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_and_served_is_refused_in_one_line(load, line, message):
    with pytest.raises(TutorialError) as error:
        load(f"{EXAMPLE}{line}")
    assert str(error.value) == f"mine.yaml: {message}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stage", "dpo", "stage='dpo': the rows are questions with answers (sft); delete the key"),
        ("finetuning_type", "full", f"finetuning_type='full': {PLAIN}"),
        ("finetuning_type", "oft", f"finetuning_type='oft': {PLAIN}"),
        ("do_train", "false", "do_train=False: the notebook trains; delete the key"),
        ("lora_rank", "4", "lora_rank=4: vLLM serves 1, 8, 16, 32, 64, 128, 256, 320, 512"),
        (
            "lora_rank",
            "many",
            "lora_rank='many': Input should be a valid integer, unable to parse string as an int",
        ),
        (
            "lora_target",
            "q_proj,embed_tokens",
            "lora_target='q_proj,embed_tokens': the engines take no LoRA on embedd",
        ),
        ("template", "qwen33", "LLaMA-Factory does not know the template 'qwen33'; did you mean 'qwen3'?"),
        (
            "learning_rate",
            "two",
            "learning_rate='two': Input should be a valid number, unable to parse string as a n",
        ),
        ("learning_rate", "-1", "learning_rate=-1.0: a number above 0 is needed"),
        ("learning_rate", ".nan", "learning_rate=nan: a number above 0 is needed"),
        ("cutoff_len", "0", "cutoff_len=0: a number above 0 is needed"),
        ("num_train_epochs", "", "num_train_epochs=None: Input should be a valid number"),
        (
            "report_to",
            "wandb",
            "report_to='wandb': WandbCallback requires wandb to be installed. Run `pip install wandb`. Or",
        ),
        ("report_to", "mlflow", "report_to='mlflow': MLflowCallback requires mlflow to be installed. Run"),
        (
            "report_to",
            "[tensorboard, trackio]",
            "report_to=['tensorboard', 'trackio']: TrackioCallback requires",
        ),
        (
            "report_to",
            "tensorbord",
            "report_to: Transformers does not know the tracker 'tensorbord'; did you mean",
        ),
        ("report_to", "[all, tensorboard]", "report_to=['all', 'tensorboard']: all stands alone; delete it"),
        (
            "resume_from_checkpoint",
            "saves/x",
            "resume_from_checkpoint='saves/x': RESUME=1 resumes a run; delete the",
        ),
        (
            "save_only_model",
            "true",
            "save_only_model=True: no run resumes without the optimizer's state; delete the",
        ),
        ("bf16", "maybe", "bf16='maybe': Input should be a valid boolean, unable to interpret input"),
        ("lr_scheduler_type", "cosin", "lr_scheduler_type='cosin': Input should be 'linear', 'cosine',"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(load, key, value, message):
    lines = [f"{key}: {value}" if line.startswith(f"{key}:") else line for line in EXAMPLE.splitlines()]
    with pytest.raises(TutorialError) as error:
        load("\n".join(lines))
    assert str(error.value).startswith(f"mine.yaml: {message}")
    assert "\n" not in str(error.value)


LAYERS = {f"model.layers.0.mlp.{name}_proj.weight": [8, 4] for name in ("gate", "up", "down")}
LAYERS |= {"model.norm.weight": [4]}


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        ("gate_proj,up_prj", "'up_prj'; did you mean 'up_proj'?"),  # PEFT would train gate_proj alone
        ("gate_proj, all", "'all'"),  # LLaMA-Factory's `all` stands alone
        ("norm", "'norm'"),
    ],
)
def test_a_layer_that_the_base_model_lacks_is_named(load, targets, named):
    with pytest.raises(TutorialError) as error:
        load(f"lora_target: {targets}", shapes=LAYERS)
    assert str(error.value) == f"mine.yaml: lora_target: the base model has no layer {named}"


@pytest.mark.parametrize("targets", ["gate_proj, mlp.up_proj", "all"])
def test_layers_that_the_base_model_has(load, targets):
    load(f"lora_target: {targets}", shapes=LAYERS)


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),  # text, to YAML 1.1
        ("learning_rate: '3e-4'", "learning_rate", 3e-4),
        ("num_train_epochs: 3", "num_train_epochs", 3.0),
        ("lora_rank: '16'", "lora_alpha", 32),
        ("lora_alpha: null", "lora_alpha", 16),
        ("eval_strategy: no", "eval_strategy", "no"),  # false, to YAML 1.1
        ("lora_target: [q_proj, v_proj]", "lora_target", "q_proj,v_proj"),
        ("report_to: [tensorboard]", "report_to", "tensorboard"),
        ("report_to: all", "report_to", "all"),
        ("report_to: none", "report_to", "none"),
        ("bf16: 'yes'", "bf16", True),
        ("run_name: 2024", "run_name", "2024"),
        ("save_strategy: epoch", "save_strategy", "epoch"),
    ],
)
def test_values_get_llamafactorys_types(load, line, key, value):
    args, _ = load(line)
    assert args[key] == value
    assert type(args[key]) is type(value)


@pytest.mark.parametrize(
    ("section", "ray"),
    [
        (
            "bf16: true",
            {"num_workers": 1, "use_gpu": True, "max_failures": 2, "num_to_keep": 3, "env_vars": {}},
        ),
        ("use_cpu: true", {"use_gpu": False, "resources_per_worker": {"CPU": 1}}),
        ("ray: {use_gpu: false}", {"use_gpu": False, "resources_per_worker": {"CPU": 1}}),
        ("ray:", {"num_workers": 1, "use_gpu": True}),
        (
            "ray: {num_workers: 3, resources_per_worker: {CPU: 2}}",
            {"resources_per_worker": {"CPU": 2, "GPU": 1}},
        ),
        ("ray: {env_vars: {OMP_NUM_THREADS: 1}}", {"env_vars": {"OMP_NUM_THREADS": "1"}}),
    ],
)
def test_what_the_section_ray_leaves_out_is_filled_in(load, section, ray):
    assert ray.items() <= load(section)[1].items()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "line 2: "),
        (b"- a list", "not a mapping of keys to values"),
        ("lora_rank: 8  # größer".encode("latin-1"), "line 1: not UTF-8; save the file as UTF-8"),
        ("lora_rank: 8".encode("utf-16"), "line 1: not UTF-8; save the file as UTF-8"),
        (b"lora_rank: 8\nlora_rank: 16", "line 2: "),
        (b"1: 2", "line 1: "),
    ],
)
def test_a_file_that_is_no_recipe_is_named_in_one_line(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_bytes(content + b"\n")
    with pytest.raises(TutorialError) as error:
        recipe.load(tmp_path / "mine.yaml")
    assert str(error.value).startswith(f"mine.yaml: {message}")
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_and_crlf_are_accepted(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(EXAMPLE.replace("\n", "\r\n").encode("utf-8-sig"))
    assert recipe.load(tmp_path / "mine.yaml")[0]["lora_rank"] == 8
