"""A folder or file somewhere: on this machine, on S3 (`s3://bucket/key`) or on Google's storage (`gs://`)."""

import functools
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import boto3
import fsspec
import pyarrow.fs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow.fs import FileSelector, FileSystem, FileType

from tutorial import TutorialError, one_line

HINTS = {  # by the schemes of STORAGE and DATA; DATA may be http:// and https:// too
    "s3": "; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) and AWS_ENDPOINT_URL",
    "gs": "; check GOOGLE_APPLICATION_CREDENTIALS",
}
PART = r"/(?!\.{1,2}(?:/|$))[^/#?\\\x00-\x1f]+"  # not . or .., and what parsers of URIs keep
CLOUD = re.compile(rf"({'|'.join(HINTS)})://(anonymous@)?([A-Za-z0-9][A-Za-z0-9._-]*(?:{PART})*)/?")
# boto3's names of credentials that pyarrow finds too, and renews.
FOUND_BY_PYARROW = ("env", "iam-role", "container-role", "assume-role-with-web-identity")
BOTO3 = {  # pyarrow's names of options, and boto3's
    "access_key": "aws_access_key_id",
    "secret_key": "aws_secret_access_key",
    "session_token": "aws_session_token",
    "endpoint_override": "endpoint_url",
    "region": "region_name",
}


@dataclass(frozen=True)
class Place:
    """A folder or file. Methods raise OSError if its file system fails.

    Attributes:
        uri: its address, without keys.
        path: where it is on `files`.
        scheme: a key of `HINTS`, `hf`, or "" on this machine.
        options: what `files` is made from, in each process that unpickles a place.
    """

    uri: str
    path: str
    scheme: str = ""
    options: dict = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, address: str | Path, setting: str = "STORAGE", **options) -> "Place":
        """Read an address: a folder, `s3://bucket/key` or `gs://bucket/key`. `anonymous@bucket` sends no key.

        S3's credentials, endpoint and region are those that boto3 finds; a bucket is read as a public one if
        there are no credentials. `options` replace them: `S3FileSystem`'s, `attempts` and `timeout_s`.

        Raises:
            TutorialError: the address cannot be taken exactly as written, or the bucket's region is unknown.
        """
        address = str(address).strip()
        cloud, scheme = CLOUD.fullmatch(address), re.match(r"([A-Za-z][\w+.-]*):", address)
        try:
            if cloud:
                kind, anonymous, path = cloud.groups()
                found = _s3(path, anonymous, options) if kind == "s3" else {"anonymous": bool(anonymous)}
                return cls(address.rstrip("/"), path, kind, found | options)
            if scheme:
                wrong = "not a whole address" if scheme[1] in HINTS else f"unknown scheme {scheme[1]!r}"
                choices = ", ".join(f"{each}://..." for each in (*HINTS, *["https"] * (setting == "DATA")))
                raise ValueError(f"{wrong}; set a folder or {choices}, without #, ? and ..")
            path = str(Path(address or "\0").expanduser().resolve())
            return cls(path, path)
        except (BotoCoreError, OSError, RuntimeError, ValueError) as error:
            shown = re.sub(r":.*@", ":...@", address)  # keys in an address are refused, and not repeated
            hint = HINTS[cloud[1]] if cloud else ""
            raise TutorialError(f"{setting}={shown}: {one_line(error)}{hint}") from None

    @property
    def files(self) -> FileSystem:
        """pyarrow's file system, one for equal options in each process."""
        return _connect(self.scheme, **self.options)

    def __truediv__(self, name: str) -> "Place":
        if {"", ".", ".."} & {*name.split("/")}:
            raise ValueError(f"{name!r} is not below {self}")
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
        if not self.scheme:  # object stores have no folders, and an object in place of one would stay
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        with self.files.open_output_stream(self.path, compression=None) as stream:
            stream.write(content)

    def listing(self) -> dict[str, int]:
        """Sizes in bytes of all files below, by their path relative to this place; {} if there are none."""
        found = self.files.get_file_info(FileSelector(self.path, recursive=True, allow_not_found=True))
        return {info.path[len(self.path) + 1 :]: info.size for info in found if info.is_file}

    def copy_to(self, target: "Place") -> None:
        """Copy a file, or all files below a folder, over what is there."""
        info = self.files.get_file_info(self.path)
        if info.type == FileType.NotFound:
            raise FileNotFoundError(f"{self} is not there")
        if info.is_file:
            if not target.scheme:
                Path(target.path).parent.mkdir(parents=True, exist_ok=True)
            pyarrow.fs.copy_files(self.path, target.path, self.files, target.files)
            return
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: (self / name).copy_to(target / name), self.listing()))

    def delete(self) -> None:
        """Delete a file, or a folder with all that is below it, if it is there."""
        if self.scheme != "s3":
            is_file = self.files.get_file_info(self.path).is_file
            with suppress(FileNotFoundError):
                (self.files.delete_file if is_file else self.files.delete_dir)(self.path)
            return
        # By boto3: pyarrow leaves an empty object in place of the folder above what it deletes.
        own = {name: self.options.get(key) for key, name in BOTO3.items()}
        bucket, _, key = self.path.partition("/")
        try:
            for found in boto3.Session().resource("s3", **own).Bucket(bucket).objects.filter(Prefix=key):
                if f"{found.key}/".startswith(f"{key}/"):
                    found.delete()
        except (BotoCoreError, ClientError) as error:
            raise OSError(one_line(error)) from None


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Turn an OSError of a place into a TutorialError that begins with `what`."""
    try:
        yield
    except OSError as error:
        raise TutorialError(f"{what} ({one_line(error)})") from None


def _s3(path: str, anonymous: str | None, options: dict) -> dict:
    """The endpoint that the user has set, the bucket's region, and credentials unless pyarrow finds them."""
    if "endpoint_override" in options:
        return {}
    session = boto3.Session()
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    amazon, endpoint = (
        session.client("s3", region, config=Config(ignore_configured_endpoint_urls=ignored)).meta.endpoint_url
        for ignored in (True, False)
    )
    if endpoint == amazon:
        region, endpoint = pyarrow.fs.resolve_s3_region(path.split("/", maxsplit=1)[0]), None
    credentials = None if anonymous else session.get_credentials()
    own = {} if credentials else {"anonymous": True}
    if credentials and credentials.method not in FOUND_BY_PYARROW:  # a profile, an assumed role, SSO ...
        own = dict(zip(BOTO3, credentials.get_frozen_credentials()[:3], strict=False))
    return own | {"endpoint_override": endpoint, "region": region}


@functools.cache
def _connect(scheme: str, attempts: int = 8, timeout_s: int = 20, **options) -> FileSystem:
    if not scheme:
        return pyarrow.fs.LocalFileSystem()
    if scheme == "hf":
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("hf", **options)))
    if scheme == "gs":
        return pyarrow.fs.GcsFileSystem(retry_time_limit=timedelta(seconds=6 * attempts), **options)
    return pyarrow.fs.S3FileSystem(
        connect_timeout=min(timeout_s, 5),
        request_timeout=timeout_s,  # seconds without a byte
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(attempts),  # 8: a minute of growing waits
        check_directory_existence_before_creation=True,  # or Ray makes objects for folders above the run's
        **options,
    )
