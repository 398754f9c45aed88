"""Order lines out of a CSV file as shops export them: dirty, of any size, read once in bounded memory.

What becomes of a row: it is kept, kept with a remark, or refused with a reason; every remark stands in
`sales_import_remarks` with the row's number. The columns are those of the UCI Online Retail data set.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import CursorResult, delete, func, select, text, update
from sqlalchemy.orm import Session

from tasks.families.sales.models import ImportRemark, OrderImport
from tasks.families.sales.service import orders, preferences
from tenants import ids, pages
from tenants.errors import InvalidInput, NotFound
from tenants.pages import Page

BATCH_ROWS = 5_000
COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
NO_GOODS = frozenset({"AMAZONFEE", "B", "BANK CHARGES", "C2", "CRUK", "D", "DOT", "M", "PADS", "POST", "S"})
"""Stock codes that stand for postage, fees, discounts and corrections by hand."""

_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
_LONGEST = 200
_GREATEST_QUANTITY = 2**31 - 1
_GREATEST_PRICE = Decimal(10**9)


@dataclass(frozen=True, slots=True)
class Remark:
    """What was odd about a row, and whether it was kept."""

    row: int
    kept: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a file in a row.

    Args:
        first: number of its first row.
        count: how many rows of the file it covers.
        lines: what is kept of them.
        remarks: what is to be said of them.
    """

    first: int
    count: int
    lines: list[orders.Line]
    remarks: list[Remark]


class _Refused(Exception):
    """The row can't be kept, for this reason."""


def read(content: Iterable[str], zone: ZoneInfo, now: datetime, *, size: int = BATCH_ROWS) -> Iterator[Batch]:
    """Read a file batch by batch.

    Args:
        content: the file's lines of text, header first.
        zone: a date without a time is noon there, which stays the same day if the tenant's timezone is corrected
            later; a time without an offset is its local time.
        now: rows dated later are refused.
        size: rows in a batch, at most.

    Raises:
        InvalidInput: a column is missing, or the file is no CSV.
    """
    reader = csv.DictReader(content)
    try:
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise InvalidInput(f"The file has no column {', '.join(missing)}.")
        first = 1
        while rows := list(islice(reader, size)):
            yield _check_rows(first, rows, zone, now)
            first += len(rows)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidInput(f"The file can't be read as CSV in UTF-8: {error}") from None


def begin(session: Session, source: str, currency: str | None = None) -> UUID:
    """Note that an import begins; returns its id.

    Args:
        source: the file's name.
        currency: of its prices; the tenant's own if None.

    Raises:
        Conflict: the tenant has orders in another currency.
    """
    if currency is not None:
        preferences.configure(session, currency=currency)
    found = OrderImport(id=ids.new(), source=source)
    session.add(found)
    session.flush()
    return found.id


def load(session: Session, import_id: UUID, batch: Batch) -> dict[str, int]:
    """Write one batch and its remarks; returns how many rows were kept and refused.

    The months of its orders must be open (`orders.open_months`), or the rows wait in the default partition.
    """
    contradicting = orders.write(session, import_id, batch.lines)
    remarks = {remark.row: remark for remark in batch.remarks}
    for line in contradicting:
        remarks[line.row] = Remark(line.row, False, "its date or customer differs from its order's")
    kept = len(batch.lines) - len(contradicting)
    _write_remarks(session, import_id, remarks)
    session.execute(
        update(OrderImport)
        .where(OrderImport.id == import_id)
        .values(kept=OrderImport.kept + kept, refused=OrderImport.refused + batch.count - kept)
    )
    return {"kept": kept, "refused": batch.count - kept}


def finish(session: Session, import_id: UUID) -> None:
    """Note that the whole file has been read."""
    session.execute(update(OrderImport).where(OrderImport.id == import_id).values(finished_at=func.clock_timestamp()))


def find(session: Session, import_id: UUID) -> OrderImport:
    """The import with this id.

    Raises:
        NotFound: there is none.
    """
    found = session.scalars(select(OrderImport).where(OrderImport.id == import_id)).one_or_none()
    if found is None:
        raise NotFound("There is no such import.")
    return found


def remarks(session: Session, import_id: UUID, *, first: int | None = None, after: str | None = None) -> Page[Any]:
    """What was said of the import's rows, in their order."""
    said = select(ImportRemark).where(ImportRemark.import_id == import_id)
    return pages.read(session, said, ImportRemark.row_number, "remark", first=first, after=after, newest_first=False)


def forget(session: Session, before: datetime) -> int:
    """Remove what is known of imports that began before a moment, and their remarks; their orders stay."""
    gone = session.execute(delete(OrderImport).where(OrderImport.started_at < before))
    assert isinstance(gone, CursorResult)
    return gone.rowcount


def show_id(import_id: UUID) -> str:
    """The import's outside id, `imp_…`."""
    return ids.show("imp", import_id)


def _check_rows(first: int, rows: list[dict[str, str]], zone: ZoneInfo, now: datetime) -> Batch:
    batch = Batch(first, len(rows), [], [])
    for number, row in enumerate(rows, first):
        try:
            line = _line(number, row, zone, now)
        except _Refused as refused:
            batch.remarks.append(Remark(number, False, str(refused)))
            continue
        batch.lines.append(line)
        if oddities := _oddities(line):
            batch.remarks.append(Remark(number, True, "; ".join(oddities)))
    return batch


def _line(number: int, row: Mapping[str, str | None], zone: ZoneInfo, now: datetime) -> orders.Line:
    values = {column: (row[column] or "").strip() for column in COLUMNS}
    if None in row or None in row.values():
        raise _Refused("it has more or fewer columns than the header")
    if any("\0" in value or len(value) > _LONGEST for value in values.values()):
        raise _Refused(f"a value is longer than {_LONGEST} characters or unreadable")
    for column in ("InvoiceNo", "StockCode", "Country"):
        if not values[column]:
            raise _Refused(f"it has no {column}")
    quantity, price = _quantity(values["Quantity"]), _price(values["UnitPrice"])
    cancellation = values["InvoiceNo"].startswith("C")
    if cancellation and quantity >= 0:
        raise _Refused("it is a cancellation, and its quantity is not negative")
    if not cancellation and quantity <= 0:
        raise _Refused("its quantity is not positive, and it is no cancellation")
    return orders.Line(
        row=number,
        number=values["InvoiceNo"],
        placed_at=_moment(values["InvoiceDate"], zone, now),
        customer=values["CustomerID"] or None,
        country=values["Country"],
        cancellation=cancellation,
        sku=values["StockCode"],
        description=values["Description"],
        stocked=values["StockCode"].upper() not in NO_GOODS,
        quantity=quantity,
        unit_price=price,
    )


def _oddities(line: orders.Line) -> list[str]:
    found = []
    if line.cancellation:
        found.append("a cancellation")
    if line.customer is None:
        found.append("no customer: a guest's")
    if line.unit_price == 0:
        found.append("its price is zero")
    return found


def _quantity(value: str) -> int:
    try:
        quantity = int(value)
    except ValueError:
        raise _Refused("its quantity is no whole number") from None
    if abs(quantity) > _GREATEST_QUANTITY:
        raise _Refused("its quantity is out of range")
    return quantity


def _price(value: str) -> Decimal:
    try:
        price = Decimal(value)
    except InvalidOperation:
        raise _Refused("its price is no number") from None
    if not price.is_finite() or not 0 <= price < _GREATEST_PRICE or price != round(price, 4):
        raise _Refused("its price is negative, too high, or finer than four decimals")
    return price


def _moment(value: str, zone: ZoneInfo, now: datetime) -> datetime:
    if not value:
        raise _Refused("it has no date")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise _Refused("its date is not in the form of ISO 8601") from None
    if len(value) == len("2010-12-01"):
        moment = datetime.combine(moment, time(12))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    if not _EARLIEST <= moment <= now + timedelta(days=1):
        raise _Refused("its date is before 1990 or in the future")
    return moment.astimezone(UTC)


_REMARKS = text("""
    INSERT INTO sales_import_remarks (import_id, row_number, kept, reason)
    SELECT cast(:import_id AS uuid), * FROM unnest(
        cast(:rows AS bigint[]), cast(:kept AS boolean[]), cast(:reasons AS text[]))
""")


def _write_remarks(session: Session, import_id: UUID, remarks: Mapping[int, Remark]) -> None:
    if remarks:
        session.execute(
            _REMARKS,
            {
                "import_id": import_id,
                "rows": list(remarks),
                "kept": [remark.kept for remark in remarks.values()],
                "reasons": [remark.reason for remark in remarks.values()],
            },
        )
