"""Object storage: local folders, S3, GCS, Azure, whatever obstore reads."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore, from_url

from tenants.errors import NotFound
from tenants.settings import Storage


def put(address: Storage, path: str, content: IO[bytes]) -> int:
    """Store what a file holds, from its beginning, replacing what stood there; returns its size in bytes.

    Args:
        path: from `names.object_path`.
    """
    size = content.seek(0, io.SEEK_END)
    content.seek(0)
    obstore.put(_store(address.url), path, content)
    return size


@contextmanager
def open_text(address: Storage, path: str) -> Iterator[IO[str]]:
    """Read an object as UTF-8 text in bounded memory; one whose path ends in `.gz` is unpacked on the way.

    Raises:
        NotFound: there is no such object.
    """
    try:
        reader: Any = obstore.open_reader(_store(address.url), path)
    except (NotFoundError, FileNotFoundError):
        raise NotFound("There is no such file.") from None
    with _Raw(reader) as raw:
        packed = io.BufferedReader(raw)
        unpacked: Any = gzip.GzipFile(fileobj=packed) if path.endswith(".gz") else packed
        with io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline="") as text:
            yield text


def delete(address: Storage, paths: Iterable[str]) -> None:
    """Remove objects; one that is gone already is no error."""
    for path in paths:
        try:
            obstore.delete(_store(address.url), path)
        except (NotFoundError, FileNotFoundError):
            continue


def paths(address: Storage, folder: str) -> Iterator[str]:
    """The paths of all objects in a folder, also in folders inside it.

    Args:
        folder: its path, without a slash at the end.
    """
    for portion in obstore.list(_store(address.url), f"{folder}/"):
        yield from (found["path"] for found in portion)


def get(address: Storage, path: str, into: IO[bytes]) -> None:
    """Write an object into a file, in bounded memory."""
    for chunk in obstore.get(_store(address.url), path).stream():
        into.write(chunk)


class _Raw(io.RawIOBase):
    """An object as Python's own layers read it."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = bytes(self._reader.read(len(buffer)))
        buffer[: len(chunk)] = chunk
        return len(chunk)


@cache
def _store(url: str) -> Any:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return LocalStore(unquote(parts.path), automatic_cleanup=True, mkdir=True)
    return from_url(url)
