import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tutorial import TutorialError, adapters, storage

MADE_BY = {"base": "some/base-model", "max_rank": 8, "recipe": {"lora_rank": 8}}


@pytest.fixture
def make(tmp_path):
    """An adapter of a rank, of one layer, as PEFT writes it."""

    def make(rank: int, of_weights: int | None = None):
        shapes = {"lora_A": (of_weights or rank, 16), "lora_B": (32, of_weights or rank)}
        weights = {f"model.layers.0.q_proj.{k}.weight": np.ones(s, np.float32) for k, s in shapes.items()}
        save_file(weights, tmp_path / adapters.WEIGHTS)
        config = {"r": rank, "base_model_name_or_path": "/somewhere/on/a/machine/base-model"}
        (tmp_path / adapters.CONFIG).write_text(json.dumps(config))
        return tmp_path

    return make


def test_what_is_published_is_what_is_read_back(store, make):
    made = adapters.publish(store, make(8), "good", **MADE_BY)
    assert adapters.verify_all(store.uri("adapters"), base="base-model") == {"good": made}
    assert made.rank == 8
    assert made.base_model == "base-model"
    assert set(made.files) == set(adapters.FILES)
    assert "ray" in made.versions
    files, path = storage.file_system(store.uri("adapters/good"))
    for file in (adapters.CONFIG, adapters.MANIFEST):
        with files.open_input_stream(f"{path}/{file}") as stream:
            assert b"somewhere" not in stream.read(), "a path of the machine that trained it"


def test_a_rank_that_the_engines_do_not_take(store, make):
    with pytest.raises(TutorialError, match=r"^adapter_config.json: r=16, the engines take ranks up to 8; "):
        adapters.publish(store, make(16), "wide", **MADE_BY)
    with pytest.raises(TutorialError, match=r"lora_A.weight has rank 4, adapter_config.json says r=8$"):
        adapters.publish(store, make(8, of_weights=4), "odd", **MADE_BY)
    assert not [name for name in store.listing() if name.startswith(("adapters/wide", "adapters/odd"))]


def test_files_that_changed_or_are_missing(store, make):
    adapters.publish(store, make(8), "changed", **MADE_BY)
    uri = store.uri("adapters/changed")
    with pytest.raises(TutorialError, match=r"made for base-model, not for another; set MODEL as it was$"):
        adapters.verify(uri, base="another")
    files, path = storage.file_system(f"{uri}/{adapters.WEIGHTS}")
    with files.open_input_stream(path) as stream:
        content = bytearray(stream.read())
    content[-1] ^= 1
    with files.open_output_stream(path) as stream:
        stream.write(bytes(content))
    with pytest.raises(TutorialError, match=r"safetensors: by its SHA-256 not the file that was published"):
        adapters.verify(uri, base="base-model")
    files.delete_file(path)
    with pytest.raises(TutorialError, match=r": adapter_model.safetensors is missing; publish the adapter"):
        adapters.verify(uri, base="base-model")
    with files.open_output_stream(path.replace(adapters.WEIGHTS, adapters.MANIFEST)) as stream:
        stream.write(b"{}")
    with pytest.raises(TutorialError, match=r"manifest.json: .*; publish the adapter again$"):
        adapters.verify_all(store.uri("adapters"), base="base-model")
    # Its configuration comes last: without it, it is on its way still, and stops no other's deployment.
    files.delete_file(path.replace(adapters.WEIGHTS, adapters.CONFIG))
    assert "viggo" not in adapters.verify_all(store.uri("adapters"), base="base-model")


def test_what_is_no_adapter(store, make):
    folder = make(8)
    (folder / adapters.WEIGHTS).write_bytes(b"no safetensors")
    with pytest.raises(TutorialError, match=r"^adapter_model.safetensors: not a file of safetensors"):
        adapters.publish(store, folder, "broken", **MADE_BY)
    (folder / adapters.WEIGHTS).unlink()
    with pytest.raises(TutorialError, match=r": holds no adapter_model.safetensors, so no adapter"):
        adapters.publish(store, folder, "broken", **MADE_BY)
