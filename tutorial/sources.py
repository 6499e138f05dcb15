"""The files that `DATA` names: one file, or a folder with a file for each split, anywhere."""

import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pyarrow
import pyarrow.fs
import requests
import urllib3
from requests.exceptions import ConnectTimeout, ProxyError, ReadTimeout

from tutorial import TutorialError, one_line
from tutorial.files import Place

TIMEOUT_S = 5
BUFFER = 8 * 2**20  # bytes of a request to an object store
UNREACHABLE = (requests.ConnectionError, ConnectTimeout, ReadTimeout, ProxyError)  # not its kind SSLError
UNREADABLE = (
    OSError,
    EOFError,
    zlib.error,
    pyarrow.ArrowException,
    urllib3.exceptions.HTTPError,
    httpx.HTTPError,  # of the Hugging Face hub's client
)
ENDINGS = ("jsonl", "json", "ndjson", "csv", "tsv", "parquet")  # of names; what a file is, its content says
DATA_FILE = re.compile(rf"(.+)\.({'|'.join(ENDINGS)})(\.gz)?", re.IGNORECASE)
NAMES = {"train": "train", "val": "val|validation|valid|dev", "test": "test"}
HUB = re.compile(
    r"(?:hf://|https://huggingface\.co/)datasets/([\w.-]+/[\w.-]+(?:@[\w.-]+)?(?:/(?!resolve/).+?)?)/?"
)
SHARD = re.compile(r"-(\d{5})-of-\d{5}$")


class Hub(Place):
    """A folder or file of a data set on the Hugging Face hub."""

    @property
    def files(self) -> pyarrow.fs.FileSystem:
        """huggingface_hub's file system, as pyarrow's."""
        from huggingface_hub import HfFileSystem  # HF_ENDPOINT: huggingface_hub reads it when it is imported

        hub = HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT") or None)
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(hub))


@dataclass(frozen=True)
class File:
    """A file of rows.

    Attributes:
        place: where it is; a text is an address of the web.
        name: for people, without the folder and what follows `?`.
    """

    place: Place | str
    name: str

    @contextmanager
    def open(self) -> Iterator[io.BufferedReader]:
        """Its uncompressed content. Raises what `UNREADABLE` names."""
        raw = self.place.open() if isinstance(self.place, Place) else _web(self.place)
        with raw, io.BufferedReader(raw, BUFFER) as stream:
            packed = stream.peek(2).startswith(b"\x1f\x8b")
            yield io.BufferedReader(gzip.GzipFile(fileobj=stream), BUFFER) if packed else stream


def shown(address: str) -> str:
    """An address without a password, and without what follows `?`."""
    web = address.startswith(("http://", "https://"))
    return re.sub(r"(?<=//)[^/]*@", "", re.split("[?#]", address)[0] if web else address).rstrip("/")


def unreadable(address: str, error: Exception, file: str = "") -> TutorialError:
    """The error of an address, or of a `file` there, that cannot be read to its end."""
    place = shown(address)
    place += f"/{file}" if file and not place.endswith(f"/{file}") else ""
    return TutorialError(f"DATA: {place} cannot be read ({one_line(error)[:300]})")


def find(address: str) -> dict[str, list[File]]:
    """The files of train, val and test; of train alone, if there is one file, or no other on the hub.

    Args:
        address: a folder or file of this machine, https://, s3://, gs:// or hf://datasets/OWNER/NAME.

    Raises:
        TutorialError: a split has no file, or more than one that are not its shards.
        OSError: there is nothing at the address; and what else `UNREADABLE` names.
    """
    if hub := HUB.fullmatch(address):
        path = f"datasets/{hub[1]}"
        place = Hub(f"hf://{path}", path, "hf")
    elif address.startswith(("http://", "https://")):
        return _on_the_web(address)
    else:
        place = Place.of(address, "DATA")
    info = place.files.get_file_info(place.path)
    if info.is_file:
        return {"train": [File(place, place.path.rpartition("/")[2])]}
    if info.type == pyarrow.fs.FileType.NotFound:
        raise FileNotFoundError("No such file or folder")
    selector = pyarrow.fs.FileSelector(place.path, recursive=place.scheme == "hf")
    names = sorted(each.path[len(place.path) + 1 :] for each in place.files.get_file_info(selector))
    parts = {name: found for name in names if (found := DATA_FILE.fullmatch(name))}
    # The twin of a file, compressed, is the same rows.
    parts = {name: found for name, found in parts.items() if not (found[3] and name[:-3] in parts)}
    splits = {split: _of_split(parts, split, address) for split in NAMES}
    if len(parts) == 1 and not any(splits.values()):
        return {"train": [File(place / name, name) for name in parts]}
    for split, found in splits.items():
        if not found and not (place.scheme == "hf" and splits["train"]):
            there = ", ".join(names[:10]) or "nothing"
            wanted = f"{split}.jsonl, {split}.csv or {split}.parquet"
            raise TutorialError(f"DATA={shown(address)}: there is no {wanted}; the folder has {there}")
    return {split: [File(place / name, name) for name in found] for split, found in splits.items() if found}


def _of_split(parts: dict[str, re.Match], split: str, address: str) -> list[str]:
    """The files of a split: those with its name, else those whose path holds it as a word."""
    for pattern in (rf"({NAMES[split]})", rf"(?:.*[^a-z])?({NAMES[split]})(?:[^a-z].*)?"):
        stems = {name: SHARD.sub("", part[1]) for name, part in parts.items()}
        found = [name for name, stem in stems.items() if re.fullmatch(pattern, stem, re.IGNORECASE)]
        if len({(stems[name], parts[name][2]) for name in found}) > 1:
            raise TutorialError(
                f"DATA={shown(address)}: {', '.join(found[:5])} could all be {split}; name one file or folder"
            )
        if found:
            return found
    return []


def _on_the_web(address: str) -> dict[str, list[File]]:
    """A website does not list its files: the usual names are asked for."""
    path = shown(address)
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
                    raise unreadable(address, error, file.name) from None
                raise
            except OSError as error:
                missing = missing or unreadable(address, error, file.name)
            else:
                found[split] = [file]
                endings.sort(key=lambda each, known=ending: each != known)
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
