"""A folder or file somewhere: on this machine, on S3 (`s3://bucket/key`) or on Google's storage (`gs://`)."""

import functools
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import boto3
import pyarrow.fs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow.fs import FileSelector, FileSystem, FileType

from tutorial import TutorialError, one_line

SCHEMES = ("s3", "gs")  # for STORAGE and DATA; DATA is read from http and https too
ATTEMPTS, TIMEOUT_S = 8, 20  # with the growing waits between them, a storage that fails has a minute or more
HINTS = {
    "s3": "; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) and AWS_ENDPOINT_URL",
    "gs": "; check GOOGLE_APPLICATION_CREDENTIALS",
}
STEP = r"/(?!\.{1,2}(?:/|$))[^/#?\\\x00-\x1f]+"  # not . or .., nor what URI parsers cut
CLOUD = re.compile(rf"({'|'.join(SCHEMES)})://(anonymous@)?([A-Za-z0-9][A-Za-z0-9._-]*(?:{STEP})*)/?")


@dataclass(frozen=True)
class Place:
    """A folder or file. Its methods raise OSError if its file system fails.

    Attributes:
        uri: its address as a person reads it, without keys.
        path: where it is on `files`.
        scheme: one of `SCHEMES`, "" on this machine.
        options: what `files` is made from, here and in each process that unpickles a place.
    """

    uri: str
    path: str
    scheme: str = ""
    options: dict = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, address: str, setting: str = "STORAGE", **options) -> "Place":
        """Read an address: a folder, `s3://bucket/key`, `gs://bucket/key` or, public, `gs://anonymous@bucket/key`.

        For S3, boto3 finds the user's credentials, endpoint and region; without credentials the bucket is
        read as a public one. `options` replace them: arguments of `S3FileSystem`, `attempts`, `timeout_s`.

        Raises:
            TutorialError: it cannot be taken exactly as written, or S3 does not name the bucket's region.
        """
        address = address.strip()
        shown = re.sub(r":.*@", ":...@", address)  # keys in an address are refused, and not repeated
        scheme = re.match(r"([A-Za-z][\w+.-]*):", address)
        cloud = CLOUD.fullmatch(address)
        try:
            if cloud:
                make = functools.partial(cls, address.rstrip("/"), cloud[3], cloud[1])
                return make(
                    _user_s3(cloud[3].split("/")[0], options)
                    if cloud[1] == "s3"
                    else options | {"anonymous": bool(cloud[2])}
                )
            if scheme:
                known = [*SCHEMES, *["https"] * (setting == "DATA")]
                wrong = f"unknown scheme {scheme[1]!r}" if scheme[1] not in known else "not a whole address"
                raise ValueError(
                    f"{wrong}; set a folder or {'://..., '.join(known)}://bucket/path, no #, ?, .. or keys"
                )
            path = str(Path(address or "\0").expanduser().resolve())
            return cls(path, path)
        except (BotoCoreError, OSError, RuntimeError, ValueError) as error:
            hint = HINTS.get(cloud[1], "") if cloud else ""
            raise TutorialError(f"{setting}={shown}: {one_line(error)}{hint}") from None

    @property
    def files(self) -> FileSystem:
        """pyarrow's file system, connected once in each process."""
        return _connect(self.scheme, **self.options)

    def __truediv__(self, name: str) -> "Place":
        if {"", ".", ".."} & {*name.split("/")}:
            raise ValueError(f"{name!r} is not below {self.uri}")
        return replace(self, uri=f"{self.uri}/{name}", path=f"{self.path}/{name}")

    def __str__(self) -> str:
        return self.uri

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        return self.files.get_file_info(self.path).type != FileType.NotFound

    def open(self) -> pyarrow.NativeFile:
        """A file's content as a stream of bytes."""
        return self.files.open_input_stream(self.path, compression=None)

    def read(self) -> bytes:
        """A file's content."""
        with self.open() as stream:
            return stream.read()

    def sha256(self) -> str:
        """The SHA-256 of a file's content, in hexadecimal digits."""
        with self.open() as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def write(self, content: bytes) -> None:
        """Write a file, and the folders above it."""
        self.make_parent()
        with self.files.open_output_stream(self.path, compression=None) as stream:
            stream.write(content)

    def listing(self) -> dict[str, int]:
        """Sizes in bytes of all files below, by their path relative to this place; {} if there are none."""
        found = self.files.get_file_info(FileSelector(self.path, recursive=True, allow_not_found=True))
        return {info.path[len(self.path) + 1 :]: info.size for info in found if info.is_file}

    def copy_to(self, target: "Place") -> None:
        """Copy a file, or all files below a folder, over what is there."""
        if self.files.get_file_info(self.path).is_file:
            target.make_parent()
            pyarrow.fs.copy_files(self.path, target.path, self.files, target.files)
            return
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: (self / name).copy_to(target / name), self.listing()))

    def make_parent(self) -> None:
        """Make the folder above; object stores have none, and an empty object in its place would stay."""
        if not self.scheme:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)

    def delete(self) -> None:
        """Delete a file, or a folder with all that is below it."""
        info = self.files.get_file_info(self.path)
        if self.scheme != "s3" and info.type != FileType.NotFound:
            (self.files.delete_file if info.is_file else self.files.delete_dir)(self.path)
        elif self.scheme == "s3":  # by boto3: pyarrow leaves an empty object for the folder above
            bucket, _, key = self.path.partition("/")
            names = {"endpoint_override": "endpoint_url", "region": "region_name"}
            names |= {"access_key": "aws_access_key_id", "secret_key": "aws_secret_access_key"}
            s3 = boto3.resource(
                "s3",
                config=Config(
                    retries={"total_max_attempts": self.options.get("attempts", ATTEMPTS), "mode": "standard"}
                ),
                **{name: self.options.get(key) for key, name in names.items()},
            )
            try:
                for found in s3.Bucket(bucket).objects.filter(Prefix=key):
                    if found.key == key or found.key.startswith(f"{key}/"):
                        found.delete()
            except (BotoCoreError, ClientError) as error:
                raise OSError(one_line(error)) from None


def _user_s3(bucket: str, options: dict) -> dict:
    """`options`, with the user's endpoint, the bucket's region and whether there are credentials."""
    if "endpoint_override" in options:
        return options
    session = boto3.Session()
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    amazon, endpoint = (
        session.client("s3", region, config=Config(ignore_configured_endpoint_urls=ignore)).meta.endpoint_url
        for ignore in (True, False)
    )
    if endpoint == amazon:
        region, endpoint = pyarrow.fs.resolve_s3_region(bucket), None
    anonymous = session.get_credentials() is None
    return {"endpoint_override": endpoint, "region": region, "anonymous": anonymous} | options


@functools.cache
def _connect(scheme: str, attempts: int = ATTEMPTS, timeout_s: int = TIMEOUT_S, **options) -> FileSystem:
    if not scheme:
        return pyarrow.fs.LocalFileSystem()
    if scheme == "gs":
        return pyarrow.fs.GcsFileSystem(retry_time_limit=timedelta(seconds=8 * attempts), **options)
    return pyarrow.fs.S3FileSystem(
        connect_timeout=min(timeout_s, 5),
        request_timeout=timeout_s,  # seconds without a byte
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(attempts),
        check_directory_existence_before_creation=True,  # or Ray makes objects for folders above a run
        **options,
    )
