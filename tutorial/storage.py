"""A run's files: all below `<storage>/<run name>/`, in a folder, on S3 or on Google's storage."""

import atexit
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pyarrow.fs import FileType

from tutorial import TutorialError, cluster, machine, one_line
from tutorial.files import HINTS, Place, failing
from tutorial.s3server import S3Server
from tutorial.settings import ROOT

PROBE_S = 30  # for a storage to take, show and delete a small file
# TMPDIR: base model, checkpoints, Ray's object store, logs. STORAGE: two checkpoints, adapter, data, answers.
FREE = {"TMPDIR": 6 * 2**30, "STORAGE": 2**30}


@dataclass
class Storage:
    """Where a run keeps its files.

    Attributes:
        root: the storage.
        run_name: the run; its files are in `root / run_name`.
        resumed: whether the run goes on where an earlier one of its name ended.
        server: the run's own S3 server; None if the storage is an object store of the user's.
        local: the folder for files that the storage did not take.
        scratch: a name that nobody can guess, for this run's temporary folder on each machine.
    """

    root: Place
    run_name: str
    resumed: bool = False
    server: S3Server | None = None
    local: Path = ROOT / "out"
    _made: Sequence[Path] = ()  # folders that were not there before

    def __post_init__(self) -> None:
        self.scratch = f"{self.run_name}-{secrets.token_hex(8)}"

    @classmethod
    def open(cls, uri: str | None, run_name: str, resume: bool = False, free: dict = FREE) -> "Storage":
        """Find the storage, and write, read and delete a small file there before any long work.

        Args:
            uri: a folder, `s3://bucket/prefix` or `gs://bucket/prefix`; None for an S3 server of this run.
            run_name: letters, digits, `.`, `_` and `-`.
            resume: whether there must be a run of this name; if not, there may be none.
            free: bytes that must be free in the temporary folder, and in a folder that is the storage.

        Raises:
            TutorialError: one of these is not so, or the storage refuses or does not answer within seconds.
        """
        if not re.fullmatch(r"\w[\w.-]*", run_name, re.ASCII):
            raise TutorialError(f"RUN_NAME={run_name}: set letters, digits, '.', '_' and '-' alone")
        machine.check_disk(tempfile.gettempdir(), "TMPDIR", free["TMPDIR"])
        root = Place.of(uri) if uri else None
        server = None if root and root.scheme else S3Server()
        made = _probe(root, run_name, free["STORAGE"]) if root else []
        store = cls(root or server.place(), run_name, resume, server, _made=made)
        atexit.register(store.close)  # a run that fails leaves no server
        if bool(store.listing()) != resume:
            store.close()
            there, hint = "a", "set another, or RESUME=1"
            if resume:
                there, hint = "no", "set STORAGE and RUN_NAME as they were"
            raise TutorialError(f"RUN_NAME={run_name}: {store} holds {there} run of this name; {hint}")
        return store

    @property
    def place(self) -> Place:
        """This run's folder in the storage."""
        return self.root / self.run_name

    def __str__(self) -> str:
        return "an S3 server of this run, on loopback" if self.server and self.root.scheme else str(self.root)

    def publish(self, folder: str | Path, name: str, files: list[str], replace: bool = False) -> Place:
        """Copy the named files of a local folder to this run's `name`, in their order. If the run is resumed,
        a file that is there already must be the same, unless `replace`.

        Raises:
            TutorialError: it is another; or the storage fails, and the files are now below `local`.
        """
        source, target = Place.of(folder), self.place / name
        if self.resumed and not replace:
            with failing(f"STORAGE={self.root}: {name} cannot be read"):
                there = target.listing().keys() & files
                others = [file for file in there if (source / file).sha256() != (target / file).sha256()]
            if others:
                hint = "set what was set then, or a new RUN_NAME"
                raise TutorialError(f"RESUME=1: {name}/{others[0]} differs from that of {self.place}; {hint}")
        try:
            for file in files:
                (source / file).copy_to(target / file)
        except OSError as error:
            kept = Place.of(self.local) / self.run_name / name
            for file in files:
                (source / file).copy_to(kept / file)
            failed = f"STORAGE={self.root}: {name} cannot be written ({one_line(error)})"
            raise TutorialError(f"{failed}; its files are kept in {kept}") from None
        return target

    def for_engines(self, name: str) -> str:
        """The address of this run's folder `name` on an object store: vLLM's engines read adapters from those
        alone. If the storage is a folder, the files are copied to the run's own S3 server."""
        if self.root.scheme:
            return str(self.place / name)
        target = self.server.place() / self.run_name / name
        with failing(f"STORAGE={self.root}: {name} cannot be copied to the local S3 server"):
            if (self.place / name).exists():
                (self.place / name).copy_to(target)
        return str(target)

    def engine_env(self) -> dict[str, str]:
        """For the engines' runtime environment: where the run's own S3 server is; {} without one."""
        return self.server.address() if self.server else {}

    def worker_env(self) -> dict[str, str]:
        """For `ray.init`'s runtime environment: the own server's keys, if a cluster is joined; else {}."""
        return self.server.keys if self.server and cluster.joins() else {}

    @contextmanager
    def worker_keys(self) -> Iterator[None]:
        """While Ray's processes start: the environment has the keys of the run's own S3 server, if there is
        one, and nothing else for AWS, which would be sent along or asked instead. Then it is as it was."""
        keys = self.server.keys if self.server else {}
        before = {name: os.environ.pop(name) for name in list(os.environ) if keys and name.startswith("AWS_")}
        try:
            os.environ.update(keys)
            yield
        finally:
            for name in keys:
                os.environ.pop(name, None)
            os.environ.update(before)

    def check_nodes(self, nodes: list[dict]) -> None:
        """TutorialError if a server on loopback is to serve more than one machine of `ray.nodes()`."""
        if self.server and (alive := sum(node["Alive"] for node in nodes)) > 1:
            here = f"the cluster has {alive} machines, and this run's S3 server serves this one alone"
            raise TutorialError(f"STORAGE={self.root}: {here}; set STORAGE to s3://... or gs://...")

    def listing(self) -> dict[str, int]:
        """Sizes in bytes of this run's files, by their path below `place`."""
        with failing(f"STORAGE={self.root}: the files of {self.run_name} cannot be listed"):
            return self.place.listing()

    def clean_up(self) -> int:
        """Delete what this run wrote there, and its temporary folder here: the number of files there."""
        count = len(self.listing())
        with failing(f"STORAGE={self.root}: the files of {self.run_name} cannot be deleted"):
            self.place.delete()
        shutil.rmtree(Path(tempfile.gettempdir(), self.scratch), ignore_errors=True)
        with suppress(OSError):  # one holds other files by now
            for folder in self._made:
                folder.rmdir()
        return count

    def close(self) -> None:
        """Stop the run's own S3 server, which deletes what is on it."""
        if self.server:
            self.server.stop()


def _probe(root: Place, run_name: str, free: int) -> list[Path]:
    """The folders that have to be made for a storage; TutorialError if it cannot be written, read and deleted
    from within seconds, or is a folder on a disk with less than `free` bytes."""
    bucket, folder = root.path.split("/")[0], Path(root.path)
    probe = replace(root, options=root.options | {"attempts": 1, "timeout_s": 4}) / f"{run_name}.probe"
    missing = [] if root.scheme else [each for each in (folder, *folder.parents) if not each.exists()]

    def ask() -> None:
        if root.scheme and probe.files.get_file_info(bucket).type == FileType.NotFound:
            raise OSError(f"there is no bucket {bucket!r}, or these credentials cannot see it")
        probe.write(b"probe")
        probe.read()
        probe.delete()

    # In a thread, as Google's client waits two minutes for a byte, which pyarrow cannot change.
    asked = ThreadPoolExecutor(1).submit(ask)
    try:
        if not wait([asked], timeout=PROBE_S).done:
            raise OSError(f"no answer in {PROBE_S} s")
        asked.result()
    except OSError as error:
        raise TutorialError(f"STORAGE={root}: {one_line(error)}{HINTS.get(root.scheme, '')}") from None
    if not root.scheme:
        machine.check_disk(root.path, "STORAGE", free)
    return missing
