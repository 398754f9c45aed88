"""Objects in a local folder."""

from __future__ import annotations

import gzip
import io
import tracemalloc
from pathlib import Path

import pytest

from tasks.gateways import storage
from tenants.errors import NotFound
from tenants.settings import Storage


@pytest.fixture
def address(tmp_path: Path) -> Storage:
    return Storage(url=f"file://{tmp_path}/a folder")


def test_an_object_is_stored_whole_and_replaced(address: Storage) -> None:
    first = io.BytesIO(b"a\r\nlonger text")
    first.seek(4)
    assert storage.put(address, "t/x.txt", first) == 14
    assert storage.put(address, "t/x.txt", io.BytesIO("\ufeffé\r\n".encode())) == 7

    with storage.open_text(address, "t/x.txt") as text:
        assert text.read() == "é\r\n"


def test_what_is_not_there_is_not_found(address: Storage) -> None:
    with pytest.raises(NotFound), storage.open_text(address, "t/x.txt"):
        pass

    storage.delete(address, ["t/x.txt"])


def test_deleted_objects_are_gone_and_others_stay(address: Storage) -> None:
    for name in ("a", "b"):
        storage.put(address, f"t/{name}", io.BytesIO(b"x"))

    storage.delete(address, ["t/a"])

    with storage.open_text(address, "t/b") as text:
        assert text.read() == "x"
    with pytest.raises(NotFound), storage.open_text(address, "t/a"):
        pass


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_large_object_is_read_line_by_line_in_little_memory(address: Storage, suffix: str) -> None:
    content = b"".join(b"%d,some text\r\n" % number for number in range(300_000))
    storage.put(address, f"t/x.{suffix}", io.BytesIO(gzip.compress(content) if suffix.endswith("gz") else content))

    tracemalloc.start()
    with storage.open_text(address, f"t/x.{suffix}") as text:
        lines = sum(1 for _ in text)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert lines == 300_000
    assert highest < len(content) / 4
