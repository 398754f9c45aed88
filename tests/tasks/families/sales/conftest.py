"""The retailer's real orders, in a tenant."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy.orm import Session

from tasks.families.sales.service import imports, orders, rollups
from tenants.context import Principal
from tests.support.installations import Installation

RETAIL = Path(__file__).resolve().parents[3] / "data" / "retail" / "order_lines.csv.gz"
AS_OF = datetime(2011, 1, 10, tzinfo=UTC)
HEADER = ",".join(imports.COLUMNS)


@pytest.fixture(scope="session")
def retail_rows() -> list[dict[str, str]]:
    """The file's rows as they stand there."""
    with gzip.open(RETAIL, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def retail_sales(retail_rows: list[dict[str, str]]) -> list[tuple[date, str, str, str, str, Decimal]]:
    """What counts as a sale, by a few lines of plain Python: day, order, customer, country, product, amount."""
    return [
        (
            date.fromisoformat(row["InvoiceDate"]),
            row["InvoiceNo"],
            row["CustomerID"],
            row["Country"],
            row["StockCode"],
            int(row["Quantity"]) * Decimal(row["UnitPrice"]),
        )
        for row in retail_rows
        if row["InvoiceDate"] and not row["InvoiceNo"].startswith("C") and int(row["Quantity"]) > 0
    ]


def load(session: Session, content: Iterable[str], *, now: datetime = AS_OF, size: int = 5_000) -> UUID:
    """Import a file's lines of text in the session; returns the import's id."""
    import_id = imports.begin(session, "order_lines.csv")
    for batch in imports.read(content, ZoneInfo("UTC"), now, size=size):
        orders.open_months(session, orders.months(line.placed_at for line in batch.lines))
        imports.load(session, import_id, batch)
    imports.finish(session, import_id)
    return import_id


def refresh(session: Session, as_of: datetime = AS_OF) -> dict[str, int]:
    """Refresh every view in the session; returns their rows."""
    return {view.name: count for view, count in rollups.refresh(session, rollups.ALL, as_of)}


def text_of(*rows: str) -> list[str]:
    """A file with these rows."""
    return [HEADER, *rows]


@pytest.fixture(scope="module")
def shop(installation: Installation) -> Principal:
    """A tenant with the retailer's orders and fresh figures as of 10 January 2011; not to be changed."""
    found = installation.tenant("shop", "sales")
    with gzip.open(RETAIL, "rt", encoding="utf-8", newline="") as file:
        installation.write(found, load, file)
    installation.write(found, refresh)
    return found


@pytest.fixture
def read(installation: Installation) -> Callable[..., object]:
    """Calls a service inside a tenant."""
    return installation.write
