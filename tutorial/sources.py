"""The files that `DATA` names: one file, or a folder with a file for each split, anywhere."""

import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx
import pyarrow
import requests
import urllib3
from pyarrow.fs import FileSelector, FileType

from tutorial import TutorialError, one_line
from tutorial.files import Place

TIMEOUT_S = 5
BUFFER = 8 * 2**20  # bytes of a request to an object store
UNREADABLE = (
    OSError,
    EOFError,
    zlib.error,
    pyarrow.ArrowException,
    urllib3.exceptions.HTTPError,
    httpx.HTTPError,  # of the Hugging Face hub's client
)
ENDINGS = ("jsonl", "json", "ndjson", "csv", "tsv", "parquet")  # of names; what a file is, its content says
DATA_FILE = re.compile(
    rf"(?P<stem>.+?)(-\d{{5}}-of-\d{{5}})?\.(?P<ending>{'|'.join(ENDINGS)})(\.gz)?", re.IGNORECASE
)
NAMES = {"train": "train", "val": "val|validation|valid|dev", "test": "test"}
HUB = re.compile(
    r"(?:hf://|https://huggingface\.co/)(datasets/[\w.-]+/[\w.-]+(?:@[\w.-]+)?(?:/(?!resolve/).+?)?)/?"
)


class File(NamedTuple):
    """A file of rows.

    Attributes:
        place: where it is; a text is an address of the web.
        name: for people, without the folder and what follows `?`.
    """

    place: Place | str
    name: str

    @contextmanager
    def open(self) -> Iterator[io.BufferedReader]:
        """Its uncompressed content. TutorialError, also inside of `with`, if it cannot be read to its end."""
        try:
            raw = _web(self.place) if isinstance(self.place, str) else self.place.open()
            with raw, io.BufferedReader(raw, BUFFER) as stream:
                packed = stream.peek(2).startswith(b"\x1f\x8b")
                yield io.BufferedReader(gzip.GzipFile(fileobj=stream), BUFFER) if packed else stream
        except UNREADABLE as error:
            raise _unreadable(str(self.place), error) from None


def find(address: str) -> dict[str, list[File]]:
    """The files of train, val and test; of train alone, if there is one file, or no other on the hub.

    Args:
        address: a folder or file of this machine, https://, s3://, gs:// or hf://datasets/OWNER/NAME.

    Raises:
        TutorialError: there is nothing at the address, or a split has no file, or more than one that are not
            its shards. Its attribute `unreachable` is true if no website answers.
    """
    try:
        if hub := HUB.fullmatch(address):
            endpoint = {"endpoint": os.environ.get("HF_ENDPOINT") or None}  # the hub's client reads it once
            return _below(Place(f"hf://{hub[1]}", hub[1], "hf", endpoint), address)
        if address.startswith(("http://", "https://")):
            return _on_the_web(address)
        return _below(Place.of(address, "DATA"), address)
    except UNREADABLE as error:
        raise _unreadable(address, error) from None


def _below(place: Place, address: str) -> dict[str, list[File]]:
    on_hub, info = place.scheme == "hf", place.files.get_file_info(place.path)
    if info.is_file:
        return {"train": [File(place, info.base_name)]}
    if info.type == FileType.NotFound:
        raise FileNotFoundError("No such file or folder")
    selector = FileSelector(place.path, recursive=on_hub)
    names = sorted(each.path[len(place.path) + 1 :] for each in place.files.get_file_info(selector))
    parts = {name: part for name in names if (part := DATA_FILE.fullmatch(name))}
    # A file and the same compressed, `train.csv` and `train.csv.gz`, are the same rows.
    parts = {name: part for name, part in parts.items() if name[:-3] not in parts}
    splits = {split: _of_split(split, parts, address) for split in NAMES}
    if len(parts) == 1 and not any(splits.values()):
        splits = {"train": [*parts]}
    for split, found in splits.items():
        if not found and not (on_hub and splits["train"]):
            missing = f"there is no {split}.jsonl, {split}.csv or {split}.parquet"
            there = ", ".join(names[:10]) or "nothing"
            raise TutorialError(f"DATA={_shown(address)}: {missing}; the folder has {there}")
    return {split: [File(place / name, name) for name in found] for split, found in splits.items() if found}


def _of_split(split: str, parts: dict[str, re.Match], address: str) -> list[str]:
    """The files of a split: those with its name, else those whose path holds it as a word."""
    for pattern in (rf"\A({NAMES[split]})\Z", rf"(?<![a-z])({NAMES[split]})(?![a-z])"):
        found = [name for name, part in parts.items() if re.search(pattern, part["stem"], re.IGNORECASE)]
        if len({parts[name].group("stem", "ending") for name in found}) > 1:
            several = f"{', '.join(found[:5])} could all be {split}"
            raise TutorialError(f"DATA={_shown(address)}: {several}; name one file or folder")
        if found:
            return found
    return []


def _on_the_web(address: str) -> dict[str, list[File]]:
    """A website does not list its files: the usual names are asked for."""
    path = _shown(address)
    name = path.rpartition("/")[2]
    if DATA_FILE.fullmatch(name):
        return {"train": [File(address, name)]}
    if re.search("[?#]", address):
        raise TutorialError(f"DATA={path}: set a folder's address, without ? and #, or a file's")
    endings, found = [f"{ending}{packed}" for ending in ENDINGS for packed in ("", ".gz")], {}
    for split in NAMES:
        missing = None
        for ending in endings:
            file = File(f"{address.rstrip('/')}/{split}.{ending}", f"{split}.{ending}")
            try:
                _web(file.place).close()
            except requests.RequestException as error:
                if found or missing:  # the server has answered before
                    raise TutorialError(_unreadable(file.place, error)) from None
                raise
            except OSError as error:
                missing = missing or _unreadable(file.place, error)
            else:
                found[split], endings = [file], [ending, *endings]
                break
        else:
            raise missing
    return found


def _web(address: str) -> io.IOBase:
    headers = {"Accept-Encoding": "identity"}  # a server that compresses would hide a file that is cut off
    response = requests.get(address, stream=True, timeout=TIMEOUT_S, headers=headers)
    if not response.ok:
        raise OSError(f"{response.status_code} {response.reason}")
    response.raw.auto_close = False  # the reader asks once more at the end
    return response.raw


def _shown(address: str) -> str:
    """An address without a password, and without what follows `?`."""
    web = address.startswith(("http://", "https://"))
    return re.sub(r"(?<=//)[^/]*@", "", re.split("[?#]", address)[0] if web else address).rstrip("/")


def _unreadable(address: str, error: Exception) -> TutorialError:
    found = TutorialError(f"DATA: {_shown(address)} cannot be read ({one_line(error)[:300]})")
    silent = isinstance(error, requests.ConnectionError | requests.Timeout)
    found.unreachable = silent and not isinstance(error, requests.exceptions.SSLError)  # it has answered
    return found
