import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from tests.conftest import ROOT
from tutorial import TutorialError, model
from tutorial.files import Place
from tutorial.storage import Storage

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def small(tmp_path):
    """A folder that passes for a model, with a name that no address takes."""
    folder = tmp_path / "small model#1"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"w": np.arange(100, dtype=np.float32)}, folder / "model.safetensors")
    (folder / ".cache").mkdir()
    return folder


def test_the_packaged_model_ends_a_turn(model_path):
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|im_end|>"
    with safe_open(model_path / "model.safetensors", framework="pt") as weights:
        assert weights.get_tensor("model.embed_tokens.weight").shape == (49152, 576)


@pytest.mark.slow
def test_cores_without_bf16_get_the_packaged_model_in_float32(tmp_path):
    """LLaMA-Factory trains in the type that the files say."""
    folder = model.resolve(model.PACKAGED, tmp_path, "float32")
    with safe_open(folder / "model.safetensors", framework="np") as weights:
        assert weights.get_tensor("model.embed_tokens.weight").dtype == np.float32
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert folder.name == model.PACKAGED, "it is served under the same name"


def test_it_is_made_once(model_path):
    before = (model_path / "model.safetensors").stat().st_mtime_ns
    assert model.resolve(model.PACKAGED, model_path.parents[1]) == model_path
    assert (model_path / "model.safetensors").stat().st_mtime_ns == before
    assert not model_path.with_name(f"{model_path.name}.part").exists()


@pytest.mark.faults
def test_a_torso_of_the_packaged_model_is_made_again(tmp_path, model_path):
    folder = tmp_path / "models" / model.PACKAGED
    for left in (folder, folder.with_name(f"{folder.name}.part")):
        shutil.copytree(model_path, left)
        (left / "model.safetensors").write_bytes(b"..")
    assert model.resolve(model.PACKAGED, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_size == (model_path / "model.safetensors").stat().st_size
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


@pytest.mark.parametrize("torso", ["cut off", "no weights", "half way"])
def test_what_a_killed_process_left_is_no_model(torso, store, small):
    source = model.publish(small, store, shared=False)
    folder = Path(tempfile.gettempdir(), store.scratch, Path(source.path).name)
    shutil.rmtree(folder, ignore_errors=True)
    left = folder.with_name(f"{folder.name}.part") if torso == "half way" else folder
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    if torso != "no weights":
        (left / "model.safetensors").write_bytes(b"..")
    (left / "other").write_text("of another")
    assert model.fetch(source, store.scratch) == str(folder)
    assert (folder / "model.safetensors").read_bytes() == (small / "model.safetensors").read_bytes()
    assert not folder.with_name(f"{folder.name}.part").exists()
    assert not (folder / "other").exists()
    shutil.rmtree(folder.parent)


def test_a_folder_without_a_model(tmp_path, small):
    with pytest.raises(TutorialError, match=r"^MODEL=.*holds no config\.json"):
        model.resolve(str(tmp_path), tmp_path)
    assert model.resolve(str(small), tmp_path) == small
    (small / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(
        TutorialError, match=r"^MODEL=.*model.safetensors is cut off or no file of safetensors"
    ):
        model.resolve(str(small), tmp_path)
    (small / "model.safetensors").unlink()
    with pytest.raises(TutorialError, match=r"^MODEL=.*holds no weights"):
        model.resolve(str(small), tmp_path)


# The Hugging Face hub; its address is read when its package is imported, so each in a process of its own


def resolve(name: str, folder: Path, hub: str) -> subprocess.CompletedProcess:
    program = (
        "import sys; from pathlib import Path; from tutorial import model; "
        "path = model.resolve(sys.argv[1], Path(sys.argv[2])); print(path.name, model.revision(path))"
    )
    return subprocess.run(
        [sys.executable, "-c", program, name, str(folder)],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["no-one/no-model", "no model", "~nobody-at-all/x", "a/b/c"])
def test_a_model_that_is_nowhere(name, tmp_path):
    said = resolve(name, tmp_path, "http://127.0.0.1:9").stderr.strip().splitlines()[-1]
    assert f"TutorialError: MODEL={name}: neither a folder here nor to be had" in said


@pytest.fixture
def hub(small):
    """A hub with one model, of a SentencePiece tokenizer; it notes which revisions it was asked for."""
    (small / "tokenizer.model").write_bytes(b"sentencepiece")
    (small / "pytorch_model.bin").write_bytes(b"a pickle")
    content = {path.name: path.read_bytes() for path in small.iterdir() if path.is_file()}
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            parts = self.path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                base = {"type": "file", "oid": "1"}
                files = [
                    base | {"rfilename": name, "path": name, "size": len(content[name])} for name in content
                ]
                about = {"id": "one/model", "sha": COMMIT, "siblings": files}
                asked.extend(parts[-1:] if parts[-2] == "revision" else [])
                body = json.dumps(about if parts[-2] == "revision" else files).encode()
            else:
                body = content.get(parts[-1], b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", '"etag"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.mark.parametrize(
    ("name", "folder", "revision"),
    [("one/model", "one--model", "main"), ("one/model@v1.0", "one--model@v1.0", "v1.0")],
)
def test_a_revision_is_asked_for_and_the_commit_is_told(name, folder, revision, hub, tmp_path):
    url, asked = hub
    done = resolve(name, tmp_path / "shared", url)
    assert done.stdout.split() == [folder, COMMIT], done.stderr
    assert set(asked) == {revision}
    got = {path.name for path in (tmp_path / "shared/models" / folder).iterdir() if path.is_file()}
    assert got == {"config.json", "model.safetensors", "tokenizer.model"}


def test_other_models_have_no_commit(model_path):
    assert model.revision(model_path) is None


# For machines that do not see the folder


def test_a_folder_that_all_machines_see_is_not_copied(small, tmp_path):
    source = model.publish(small, Storage(Place.of(tmp_path / "kept"), "viggo-1"), shared=True)
    assert source == str(small)
    assert model.fetch(source, "nowhere") == str(small)
    assert not (tmp_path / "kept").exists()


def test_two_workers_fetch_a_model_once_into_a_folder_of_their_own(store, small):
    source = model.publish(small, store, shared=False)
    assert source.path.startswith(f"{store.place.path}/models/small-model-1-")
    assert source.listing() == {
        "config.json": 2,
        "model.safetensors": (small / "model.safetensors").stat().st_size,
    }
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: model.fetch(source, store.scratch), range(4)))
    folder = Path(folders.pop())
    assert not folders
    assert (folder / "model.safetensors").read_bytes() == (small / "model.safetensors").read_bytes()
    scratch = Path(tempfile.gettempdir(), store.scratch)
    assert folder.parent == scratch
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    assert sorted(path.name for path in scratch.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_a_resumed_run_neither_reads_nor_writes_a_model_that_is_there(small, tmp_path):
    run = Storage(Place.of(tmp_path / "kept"), "viggo-1")
    source = model.publish(small, run, shared=False)
    weights = Path(source.path, "model.safetensors")
    before = weights.stat()
    os.utime(weights, ns=(0, 0))
    again = Storage(Place.of(tmp_path / "kept"), "viggo-1", resumed=True)
    assert model.publish(small, again, shared=False) == source
    assert (weights.stat().st_mtime_ns, weights.stat().st_atime_ns) == (0, 0)
    weights.write_bytes(b"cut")  # an upload that ended half way
    assert model.publish(small, again, shared=False) == source
    assert weights.stat().st_size == before.st_size
    save_file({"w": np.zeros(100, dtype=np.float32)}, small / "model.safetensors")  # of the same size
    assert model.publish(small, again, shared=False) != source


def test_a_storage_that_fails_is_told_in_one_line(small, tmp_path):
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(TutorialError, match=r"^STORAGE=.*: the model small model#1 cannot be written \("):
        model.publish(small, Storage(Place.of(tmp_path / "kept"), "viggo-1"), shared=False)
    with pytest.raises(TutorialError, match=r"^STORAGE: .* cannot be copied to .* \("):
        model.fetch(Place.of(tmp_path / "kept/no/model"), "viggo-1-no-model")
    shutil.rmtree(Path(tempfile.gettempdir(), "viggo-1-no-model"))
