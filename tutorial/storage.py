"""A run's files, in the one place that STORAGE names: a folder, `s3://...` or `gs://...`.

A run writes under `<storage>/<run name>/` and nowhere else, but for a probe beside it, which it deletes.
"""

import atexit
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow.fs import FileType

from tutorial import TutorialError, cluster, one_line
from tutorial.files import HINTS, Place
from tutorial.s3server import S3Server
from tutorial.settings import ROOT

FREE_BYTES = 6 * 2**30  # in TMPDIR: base model, checkpoints, Ray's object store and logs of a cpu run
STORED_BYTES = 2**30  # in a folder: two checkpoints, the adapter, data and answers


@dataclass
class Storage:
    """Where a run keeps its files; `open` makes one.

    Attributes:
        root: the storage.
        run_name: the run; its files are in `root / run_name`.
        resumed: whether the run goes on where an earlier one of its name ended.
        server: the run's own S3 server, None if the storage is an object store of somebody else.
        scratch: a name, which nobody can guess, for this run's temporary folder on each machine.
        local: the folder for files that the storage did not take.
    """

    root: Place
    run_name: str
    resumed: bool = False
    server: S3Server | None = None
    scratch: str = ""
    local: Path = ROOT / "out"
    _made: list[Path] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        uri: str | None,
        run_name: str,
        resume: bool = False,
        needs_bytes: int = FREE_BYTES,
        stores_bytes: int = STORED_BYTES,
    ) -> "Storage":
        """Find the storage, and write, read and delete a small file there before any long work.

        Args:
            uri: a folder, an address of an object store, or None for an S3 server of this run.
            run_name: letters, digits, `.`, `_` and `-`.
            resume: whether to go on with the run of this name; if not, there may be none.
            needs_bytes: what must be free in the temporary folder.
            stores_bytes: what must be free in the storage, if it is a folder.

        Raises:
            TutorialError: no such address or bucket, refused credentials, no answer within seconds, too
                little disk, or a run of this name that is there, or with `resume` is not.
        """
        if not re.fullmatch(r"\w[\w.-]*", run_name, re.ASCII):
            raise TutorialError(f"RUN_NAME={run_name}: set letters, digits, '.', '_' and '-', no more")
        _check_disk(tempfile.gettempdir(), needs_bytes, "TMPDIR")
        store = cls(Place("", ""), run_name, resume, scratch=f"{run_name}-{secrets.token_hex(8)}")
        atexit.register(store.close)  # a run that fails leaves no server and no temporary folder
        if uri is None or not (root := Place.of(uri, attempts=1, timeout_s=4)).scheme:
            store.server = S3Server()
        if uri is None:
            store.server.start()
            store.root = store.server.place()
        else:
            path = Path(root.path)
            store._made = [p for p in (path, *path.parents) if not root.scheme and not p.exists()]
            _probe(root, run_name)
            store.root = Place.of(uri)
            if not root.scheme:
                _check_disk(root.path, stores_bytes, "STORAGE")
        there = store.listing()
        if there and not resume:
            raise TutorialError(
                f"RUN_NAME={run_name}: {store} holds a run of this name; set another, or RESUME=1"
            )
        if resume and not there:
            raise TutorialError(
                f"RESUME=1, RUN_NAME={run_name}: {store} holds no run of this name; set STORAGE and RUN_NAME "
                "as they were"
            )
        return store

    @property
    def place(self) -> Place:
        """This run's folder in the storage."""
        return self.root / self.run_name

    def __str__(self) -> str:
        return "an S3 server of this run, on loopback" if self.server and self.root.scheme else str(self.root)

    def publish(self, folder: str | Path, name: str, files: list[str], replace: bool = False) -> Place:
        """Copy the named files of a local folder to this run's `name`, in this order.

        When resuming, a file that is already there must be the same, unless `replace`.

        Raises:
            TutorialError: the storage did not take them (then the folder below `local` that has them now
                is named), or a resumed run has another file there.
        """
        source, target = Place.of(str(Path(folder).absolute())), self.place / name
        try:
            with self._told(f"{name} cannot be written"):
                there = target.listing() if self.resumed and not replace else {}
                for file in there.keys() & files:
                    if (source / file).sha256() != (target / file).sha256():
                        raise TutorialError(
                            f"RESUME=1: {name}/{file} was another in the run {self.run_name}; set what was set "
                            "then, or a new RUN_NAME"
                        )
                for file in files:
                    (source / file).copy_to(target / file)
        except StorageError as error:
            kept = Place.of(str(self.local)) / self.run_name / name
            for file in files:
                (source / file).copy_to(kept / file)
            raise StorageError(f"{error}; its files are kept in {kept}") from None
        return target

    def for_engines(self, name: str) -> str:
        """The address of this run's folder `name` for vLLM's engines, which read adapters from object stores
        alone. Files of a folder are copied to the run's own S3 server, which serves one machine."""
        if self.root.scheme:
            return str(self.place / name)
        self.engine_env()
        target = self.server.place() / self.run_name / name
        with self._told(f"{name} cannot be copied to the local S3 server"):
            (self.place / name).copy_to(target)
        return str(target)

    def engine_env(self) -> dict[str, str]:
        """For the engines' runtime environment: where the run's own S3 server is; {} without one."""
        if not self.server:
            return {}
        if not self.server.endpoint:
            self.server.start()
        return self.server.address()

    def worker_env(self) -> dict[str, str]:
        """For `ray.init`'s runtime environment: the run's own server's keys, if a cluster is joined. One that
        starts here inherits them by `worker_keys`, so that no key is in one of Ray's logs."""
        return self.server.keys if self.server and cluster.joins() else {}

    @contextmanager
    def worker_keys(self) -> Iterator[None]:
        """While Ray's processes start: the environment has the run's own server's keys, and nothing else of
        AWS, which would be sent along or asked instead. Afterwards it is as it was."""
        if not self.server:
            yield
            return
        before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
        kept = {name: value for name, value in before.items() if name == "AWS_CA_BUNDLE"}
        os.environ.update(kept | self.server.keys)
        try:
            yield
        finally:
            for name in self.server.keys:
                os.environ.pop(name, None)
            os.environ.update(before)

    def check_nodes(self, nodes: list[dict]) -> None:
        """TutorialError if a server on loopback is to serve more than one machine of `ray.nodes()`."""
        alive = sum(node["Alive"] for node in nodes)
        if self.server and alive > 1:
            raise TutorialError(
                f"STORAGE={self.root}: the cluster has {alive} machines, and this run's S3 server can be "
                "reached from this one alone; set STORAGE to s3://... or gs://..."
            )

    def listing(self) -> dict[str, int]:
        """Sizes in bytes of this run's files, by their path below `place`."""
        with self._told(f"the files of {self.run_name} cannot be listed"):
            return self.place.listing()

    def clean_up(self) -> int:
        """Delete what this run wrote, nothing else: the number of files deleted."""
        count = len(self.listing())
        if not self.place.path.endswith(f"/{self.run_name}"):
            raise TutorialError(
                f"{self.place.path} is not the folder of {self.run_name}; nothing was deleted"
            )
        with self._told(f"the files of {self.run_name} cannot be deleted"):
            self.place.delete()
        with suppress(OSError):  # one holds other files by now
            for folder in self._made:
                folder.rmdir()
        return count

    def close(self) -> None:
        """Stop the run's own S3 server, and delete the run's temporary folder on this machine."""
        if self.server:
            self.server.stop()
        if self.scratch:
            shutil.rmtree(Path(tempfile.gettempdir(), self.scratch), ignore_errors=True)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"STORAGE={self.root}: {what} ({one_line(error)})") from None


class StorageError(TutorialError):
    """The storage failed, and went on failing."""


def _probe(root: Place, run_name: str) -> None:
    """TutorialError if the storage cannot be written, read and deleted from within seconds."""
    try:
        bucket = root.path.split("/")[0]
        if root.scheme and root.files.get_file_info(bucket).type == FileType.NotFound:
            raise OSError(f"there is no bucket {bucket!r}, or these credentials cannot see it")
        probe = root / f"{run_name}.probe"
        probe.write(b"probe")
        if probe.read() != b"probe":
            raise OSError(f"{probe} does not hold what was written")
        probe.delete()
    except OSError as error:
        raise TutorialError(f"STORAGE={root}: {one_line(error)}{HINTS.get(root.scheme, '')}") from None


def _check_disk(folder: str, needed: int, setting: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        has = f"{free / 2**30:.1f} GiB free, the run needs {needed / 2**30:.0f}"
        raise TutorialError(f"{folder}: {has}; set {setting} to a larger disk")
