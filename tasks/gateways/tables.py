"""Tables as CSV, JSON and XLSX, written row by row in constant memory."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import IO

from xlsxwriter import Workbook
from xlsxwriter.worksheet import Worksheet

Cell = str | int | float | Decimal | date | datetime | None
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_SHEET_ROWS = 1_048_576


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write a table.

    Args:
        media_type: what it is to HTTP.
        write: takes the file, the names of the columns, and the rows.
    """

    media_type: str
    write: Callable[[IO[bytes], Sequence[str], Iterable[Sequence[Cell]]], None]


def escape(value: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe goes before what could begin one.

    Source: OWASP, CSV Injection.
    """
    return f"'{value}" if value.startswith(_FORMULA_STARTS) else value


def write_csv(file: IO[bytes], columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """RFC 4180, UTF-8; texts are escaped, numbers are not."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([escape(cell) if isinstance(cell, str) else _plain(cell) for cell in row])
    text.detach()


def write_json(file: IO[bytes], columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """An array of objects, one a line; decimals are strings, so that no digit is lost."""
    separator = "[\n"
    for row in rows:
        record = dict(zip(columns, map(_plain, row), strict=True))
        file.write((separator + json.dumps(record, ensure_ascii=False)).encode())
        separator = ",\n"
    file.write(b"\n]\n" if separator == ",\n" else b"[]\n")


def write_xlsx(file: IO[bytes], columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """A workbook; texts stay texts. Rows beyond what a sheet can hold go on in a further sheet."""
    options = {"constant_memory": True, "strings_to_formulas": False, "strings_to_urls": False}
    with Workbook(file, {**options, "default_date_format": "yyyy-mm-dd", "remove_timezone": True}) as book:
        place = _SHEET_ROWS
        for row in rows:
            if place == _SHEET_ROWS:
                sheet = _new_sheet(book, columns)
                place = 1
            for column, cell in enumerate(row):
                sheet.write_string(place, column, cell) if isinstance(cell, str) else sheet.write(place, column, cell)
            place += 1
        if not book.worksheets():
            _new_sheet(book, columns)


FORMATS = {
    "csv": Format("text/csv; charset=utf-8", write_csv),
    "json": Format("application/json", write_json),
    "xlsx": Format("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", write_xlsx),
}


def _new_sheet(book: Workbook, columns: Sequence[str]) -> Worksheet:
    sheet = book.add_worksheet()
    sheet.freeze_panes(1, 0)
    sheet.write_row(0, 0, columns, book.add_format({"bold": True}))
    return sheet


def _plain(cell: Cell) -> str | int | float | None:
    if isinstance(cell, Decimal):
        return f"{cell:f}"
    return cell.isoformat() if isinstance(cell, date) else cell
