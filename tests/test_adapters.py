import json
import time

import numpy as np
import pytest
from peft import LoraConfig
from safetensors.numpy import save_file

from tutorial import TutorialError, adapters, serving
from tutorial.storage import Storage

MADE_BY = {"base": "some/base-model", "max_rank": 8, "recipe": {"lora_rank": 8}}


@pytest.fixture
def run(store):
    """A run of its own on the session's server."""
    return Storage(store.root, f"run-{time.time_ns()}")


@pytest.fixture
def make(tmp_path):
    """An adapter of one layer, as PEFT writes it with `options` of its LoraConfig."""

    def make(rank: int = 8, of_weights: int | None = None, **options):
        shapes = {"lora_A": (of_weights or rank, 16), "lora_B": (32, of_weights or rank)}
        weights = {f"model.layers.0.q_proj.{k}.weight": np.ones(s, np.float32) for k, s in shapes.items()}
        save_file(weights, tmp_path / adapters.WEIGHTS)
        config = LoraConfig(
            base_model_name_or_path="/somewhere/on/a/machine/base-model", task_type="CAUSAL_LM"
        )
        written = config.to_dict() | {"r": rank, "target_modules": ["q_proj"], "peft_type": "LORA"} | options
        written = {key: value for key, value in written.items() if value is not ...}
        (tmp_path / adapters.CONFIG).write_text(json.dumps(written, default=str))
        return tmp_path

    return make


def refused(run, folder, message):
    with pytest.raises(TutorialError, match=message) as error:
        adapters.publish(run, folder, "refused", **MADE_BY)
    assert "\n" not in str(error.value)
    assert not [name for name in run.listing() if name.startswith("adapters/refused")]


def test_what_is_published_is_what_is_read_back(run, make):
    made = adapters.publish(run, make(), "good", **MADE_BY)
    place = run.place / "adapters"
    assert adapters.verify_all(place, base="base-model")["good"] == made
    assert made.rank == 8
    assert made.base_model == "base-model"
    assert set(made.files) == set(adapters.FILES)
    assert "ray" in made.versions
    for file in (adapters.CONFIG, adapters.MANIFEST):
        assert b"somewhere" not in (place / "good" / file).read(), "a path of the machine that trained it"
    assert adapters.verify_all(run.place / "none", base="base-model") == {}


def test_a_base_model_with_a_name_that_ray_serve_cannot_take(run, make):
    """The manifest has the name that the model is served under."""
    adapters.publish(run, make(), "odd", **MADE_BY | {"base": "/models/qwen3:135m"})
    served = serving.model_id("/models/qwen3:135m")
    assert adapters.verify(run.place / "adapters" / "odd", base=served).base_model == served == "qwen3-135m"


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva"},
        {"lora_dropout": 0.5, "exclude_modules": ["lm_head"], "layers_to_transform": [0]},
        {"lora_alpha": 16.5, "target_modules": "all-linear"},
    ],
)
def test_what_vllm_serves_as_it_was_trained(run, make, options):
    adapters.publish(run, make(**options), "served", **MADE_BY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_lora_weights": "pissa"}, r"^adapter_config.json: init_lora_weights"),
        ({"init_lora_weights": "pissa_niter_16"}, r"^adapter_config.json: init_lora_weights"),
        ({"init_lora_weights": "olora"}, r"^adapter_config.json: init_lora_weights"),
        ({"init_lora_weights": "loftq"}, r"^adapter_config.json: init_lora_weights"),
        ({"init_lora_weights": "corda"}, r"^adapter_config.json: init_lora_weights"),
        ({"use_dora": True}, r"^adapter_config.json: use_dora=True: vLLM"),
        ({"modules_to_save": ["lm_head"]}, r"^adapter_config.json: modules_to_save=\['lm_head'\]: vLLM"),
        ({"rank_pattern": {"q_proj": 4}}, r"^adapter_config.json: rank_pattern="),
        ({"alpha_pattern": {"q_proj": 4}}, r"^adapter_config.json: alpha_pattern="),
        ({"bias": "all"}, r"^adapter_config.json: bias: "),
        ({"lora_bias": True}, r"^adapter_config.json: lora_bias="),
        ({"trainable_token_indices": [1, 2]}, r"^adapter_config.json: trainable_token_indices="),
        ({"layer_replication": [[0, 1], [0, 1]]}, r"^adapter_config.json: layer_replication="),
        ({"target_parameters": ["experts"]}, r"^adapter_config.json: target_parameters="),
        ({"alora_invocation_tokens": [1]}, r"^adapter_config.json: alora_invocation_tokens="),
        ({"use_qalora": True}, r"^adapter_config.json: use_qalora="),
        ({"some_newer_method": {"x": 1}}, r"^adapter_config.json: some_newer_method="),
        ({"peft_type": "OFT"}, r"^adapter_config.json: peft_type: "),
        ({"r": ...}, r"^adapter_config.json: r: Field required"),
        ({"r": 0}, r"^adapter_config.json: r: "),
        ({"r": "8 or so"}, r"^adapter_config.json: r: "),
        ({"lora_alpha": ...}, r"^adapter_config.json: lora_alpha: Field required"),
        ({"lora_alpha": None}, r"^adapter_config.json: lora_alpha: "),
        ({"target_modules": ...}, r"^adapter_config.json: target_modules: Field required"),
    ],
)
def test_what_vllm_would_serve_as_something_else(run, make, options, message):
    """An allow-list: also a method that PEFT will have one day is refused, and not served without it."""
    refused(run, make(**options), message)


@pytest.mark.parametrize("content", [b"no JSON", b"[]", b"", b'{"r": "\xe9"}', b'"text"', b"7"])
def test_a_configuration_that_cannot_be_read(run, make, content):
    folder = make()
    (folder / adapters.CONFIG).write_bytes(content)
    refused(run, folder, r"^adapter_config.json: ")


def test_a_rank_that_the_engines_do_not_take(run, make):
    refused(run, make(16), r"^adapter_config.json: r=16, the engines take ranks up to 8; ")
    refused(run, make(8, of_weights=4), r"lora_A.weight has rank 4, adapter_config.json says r=8$")


@pytest.mark.parametrize(
    "key",
    [
        "model.embed_tokens.lora_embedding_A",
        "model.layers.0.q_proj.lora_magnitude_vector.weight",
        "model.layers.0.q_proj.lora_B.bias",
        "lm_head.modules_to_save.weight",
    ],
)
def test_weights_beside_the_two_matrices(run, make, key):
    folder = make()
    save_file({key: np.ones((8, 8), np.float32)}, folder / adapters.WEIGHTS)
    refused(run, folder, rf"^adapter_model.safetensors: {key} is no matrix of LoRA's")


def test_an_empty_adapter(run, make):
    folder = make()
    save_file({}, folder / adapters.WEIGHTS)
    refused(run, folder, r"^adapter_model.safetensors: holds no matrices")


def test_files_that_changed_or_are_missing(run, make):
    adapters.publish(run, make(), "changed", **MADE_BY)
    place = run.place / "adapters/changed"
    with pytest.raises(TutorialError, match=r"made for base-model, not for another; set MODEL as it was$"):
        adapters.verify(place, base="another")
    weights = place / adapters.WEIGHTS
    content = bytearray(weights.read())
    content[-1] ^= 1
    weights.write(bytes(content))
    with pytest.raises(TutorialError, match=r"safetensors: by its SHA-256 not the file that was published"):
        adapters.verify(place, base="base-model")
    weights.delete()
    with pytest.raises(TutorialError, match=r": adapter_model.safetensors is missing; publish the adapter"):
        adapters.verify(place, base="base-model")
    (place / adapters.MANIFEST).write(b"{}")
    with pytest.raises(TutorialError, match=r": adapter_model.safetensors is missing; publish the adapter"):
        adapters.verify_all(run.place / "adapters", base="base-model")
    weights.write(bytes(content))
    with pytest.raises(TutorialError, match=r"manifest.json: .*; publish the adapter again$"):
        adapters.verify_all(run.place / "adapters", base="base-model")
    # Its configuration comes last: without it, it is still being published, and stops no other's deployment.
    (place / adapters.CONFIG).delete()
    assert "changed" not in adapters.verify_all(run.place / "adapters", base="base-model")


def test_what_is_no_adapter(run, make):
    folder = make()
    (folder / adapters.WEIGHTS).write_bytes(b"no safetensors")
    refused(run, folder, r"^adapter_model.safetensors: not a file of safetensors")
    (folder / adapters.WEIGHTS).unlink()
    refused(run, folder, r": adapter_model.safetensors is missing, so this is no adapter of PEFT's")
