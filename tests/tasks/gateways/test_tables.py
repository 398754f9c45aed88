"""Tables are written row by row, and no cell of theirs is a formula."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Iterator
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from python_calamine import CalamineWorkbook

from tasks.gateways import tables

COLUMNS = ("name", "day", "amount", "count")


@given(st.text())
def test_no_escaped_text_begins_a_formula(text: str) -> None:
    escaped = tables.escape(text)

    assert not escaped.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert escaped.removeprefix("'") == text.removeprefix("'")


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc"))), min_size=1, max_size=20))
def test_csv_reads_back_as_it_was_written(names: list[str]) -> None:
    file = io.BytesIO()
    tables.write_csv(file, COLUMNS, ((name, date(2026, 1, 2), Decimal("-1.50"), 3) for name in names))

    rows = list(csv.reader(io.StringIO(file.getvalue().decode(), newline="")))

    assert rows == [list(COLUMNS), *([tables.escape(name), "2026-01-02", "-1.50", "3"] for name in names)]


def test_json_loses_no_digit() -> None:
    file = io.BytesIO()
    tables.write_json(file, COLUMNS, [("=é", date(2026, 1, 2), Decimal("12345678901234567.8901"), None)])

    assert json.loads(file.getvalue()) == [
        {"name": "=é", "day": "2026-01-02", "amount": "12345678901234567.8901", "count": None}
    ]


def test_xlsx_keeps_texts_as_texts() -> None:
    file = io.BytesIO()
    tables.write_xlsx(file, COLUMNS, [("=1+1", date(2026, 1, 2), Decimal("1.5"), 2), ("http://x.example", None, 0, 1)])

    table = CalamineWorkbook.from_filelike(io.BytesIO(file.getvalue())).get_sheet_by_index(0).to_python()

    assert table == [list(COLUMNS), ["=1+1", date(2026, 1, 2), 1.5, 2.0], ["http://x.example", "", 0.0, 1.0]]


def test_a_workbook_goes_on_in_a_further_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_SHEET_ROWS", 4)
    file = io.BytesIO()
    tables.write_xlsx(file, ("n",), [(n,) for n in range(7)])

    book = CalamineWorkbook.from_filelike(io.BytesIO(file.getvalue()))

    assert [len(book.get_sheet_by_name(name).to_python()) for name in book.sheet_names] == [4, 4, 2]


@pytest.mark.parametrize(("form", "expected"), [("csv", b"name\r\n"), ("json", b"[]\n")])
def test_no_rows_make_an_empty_table(form: str, expected: bytes) -> None:
    file = io.BytesIO()
    tables.FORMATS[form].write(file, ("name",), [])

    assert file.getvalue() == expected


@pytest.mark.parametrize("form", sorted(tables.FORMATS))
def test_memory_does_not_grow_with_the_rows(form: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tables")

    def rows(count: int) -> Iterator[tuple[str, date, Decimal, int]]:
        return ((f"name {n % 50}", date(2026, 1, 2), Decimal(n), n) for n in range(count))

    def peak(count: int) -> int:
        tracemalloc.start()
        with (folder / f"{count}").open("wb") as file:
            tables.FORMATS[form].write(file, COLUMNS, rows(count))
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(100)
    assert peak(20_000) < peak(2_000) + 300_000
