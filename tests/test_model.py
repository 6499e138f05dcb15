import os
import subprocess
import sys

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from tests.conftest import ROOT
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


def test_a_model_that_is_nowhere(tmp_path):
    """In a process of its own: the hub's address is read when its package is imported."""
    program = "import sys; from pathlib import Path; from tutorial import model; "
    program += "model.folder('no-one/no-model', Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr.strip().splitlines()[-1]
    assert "TutorialError: MODEL=no-one/no-model: neither a folder here nor to be had" in said


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(TutorialError, match=r"holds no config\.json"):
        model.folder(str(tmp_path), tmp_path)
