import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from tutorial import TutorialError, model


def test_the_packaged_model_ends_a_turn(model_path):
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|im_end|>"
    with safe_open(model_path / "model.safetensors", framework="pt") as weights:
        assert weights.get_tensor("model.embed_tokens.weight").shape == (49152, 576)


def test_it_is_made_once(model_path):
    before = (model_path / "model.safetensors").stat().st_mtime_ns
    assert model.folder(model.PACKAGED, model_path.parents[1]) == model_path
    assert (model_path / "model.safetensors").stat().st_mtime_ns == before


def test_a_model_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TutorialError, match=r"^MODEL=no-one/no-model: neither a folder here nor") as error:
        model.folder("no-one/no-model", tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(TutorialError, match=r"holds no config\.json"):
        model.folder(str(tmp_path), tmp_path)
