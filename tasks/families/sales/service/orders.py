"""Orders come in by batches of lines, each batch in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from tasks.families.sales.models import Order


@dataclass(frozen=True, slots=True)
class Line:
    """One product in one order, as it comes in.

    Args:
        row: its number in the source, unique in the order.
        number: the order's.
        customer: None for a guest.
        cancellation: whether the order takes back an earlier one.
        stocked: whether the product is goods.
    """

    row: int
    number: str
    placed_at: datetime
    customer: str | None
    country: str
    cancellation: bool
    sku: str
    description: str
    stocked: bool
    quantity: int
    unit_price: Decimal


_CUSTOMERS = text("""
    INSERT INTO sales_customers (reference, country)
    SELECT * FROM unnest(cast(:references AS text[]), cast(:countries AS text[]))
    ON CONFLICT (tenant_id, reference) DO UPDATE SET country = excluded.country
    WHERE sales_customers.country <> excluded.country
""")
_PRODUCTS = text("""
    INSERT INTO sales_products (sku, description, stocked)
    SELECT * FROM unnest(cast(:skus AS text[]), cast(:descriptions AS text[]), cast(:stocked AS boolean[]))
    ON CONFLICT (tenant_id, sku) DO UPDATE SET description = excluded.description
    WHERE excluded.description NOT IN ('', sales_products.description)
""")
_ORDERS = text("""
    INSERT INTO sales_orders (placed_at, number, cancellation, customer, country, import_id)
    SELECT *, cast(:import_id AS uuid) FROM unnest(
        cast(:placed_at AS timestamptz[]), cast(:numbers AS text[]), cast(:cancellations AS boolean[]),
        cast(:customers AS text[]), cast(:countries AS text[]))
    ON CONFLICT (tenant_id, placed_at, number) DO NOTHING
""")
_LINES = text("""
    INSERT INTO sales_order_lines (placed_at, number, line, sku, quantity, unit_price)
    SELECT * FROM unnest(
        cast(:placed_at AS timestamptz[]), cast(:numbers AS text[]), cast(:rows AS bigint[]), cast(:skus AS text[]),
        cast(:quantities AS int[]), cast(:prices AS numeric[]))
""")


def months(moments: Iterable[datetime]) -> set[datetime]:
    """The first moments of the months, in UTC, that moments fall into."""
    return {moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0) for moment in moments}


def open_months(session: Session, starts: Collection[datetime]) -> int:
    """Make the partitions for months of orders; returns how many were new.

    Its locks last until the commit: give it a transaction of its own.
    """
    return sum(session.scalars(select(func.ensure_order_partitions(start, start))).one() for start in sorted(starts))


def write(session: Session, import_id: UUID, lines: Sequence[Line]) -> list[Line]:
    """Write lines and the orders, customers and products they name.

    An order that another import brought is replaced: its old lines go at the first line of the new. A line whose date
    or customer differs from what the import said of its order before is left out.

    Args:
        import_id: the import the lines belong to.
        lines: each row once in an import; lines of one order may be in several batches.

    Returns:
        The lines that were left out.
    """
    lock = func.hashtextextended("sales.orders:" + func.current_setting("app.tenant_id"), 0)
    session.execute(select(func.pg_advisory_xact_lock(lock)))
    heads = _heads(session, import_id, {line.number for line in lines})
    fitting: list[Line] = []
    contradicting: list[Line] = []
    for line in lines:
        head = heads.setdefault(line.number, (line.placed_at, line.customer))
        (fitting if head == (line.placed_at, line.customer) else contradicting).append(line)
    if fitting:
        _remove_earlier(session, import_id, {line.number for line in fitting})
        _write_customers(session, fitting)
        _write_products(session, fitting)
        _write_orders(session, import_id, fitting)
        _write_lines(session, fitting)
    return contradicting


def _heads(session: Session, import_id: UUID, numbers: set[str]) -> dict[str, tuple[datetime, str | None]]:
    found = session.execute(
        select(Order.number, Order.placed_at, Order.customer).where(
            Order.number.in_(numbers), Order.import_id == import_id
        )
    )
    return {number: (placed_at, customer) for number, placed_at, customer in found}


def _remove_earlier(session: Session, import_id: UUID, numbers: set[str]) -> None:
    session.execute(
        delete(Order)
        .where(Order.number.in_(numbers), Order.import_id.is_distinct_from(import_id))
        .execution_options(synchronize_session=False)
    )


def _write_customers(session: Session, lines: Sequence[Line]) -> None:
    countries = {line.customer: line.country for line in lines if line.customer is not None}
    if countries:
        session.execute(_CUSTOMERS, {"references": list(countries), "countries": list(countries.values())})


def _write_products(session: Session, lines: Sequence[Line]) -> None:
    products: dict[str, Line] = {}
    for line in lines:
        if line.description or line.sku not in products:
            products[line.sku] = line
    session.execute(
        _PRODUCTS,
        {
            "skus": list(products),
            "descriptions": [line.description for line in products.values()],
            "stocked": [line.stocked for line in products.values()],
        },
    )


def _write_orders(session: Session, import_id: UUID, lines: Sequence[Line]) -> None:
    heads = {line.number: line for line in reversed(lines)}
    session.execute(
        _ORDERS,
        {
            "import_id": import_id,
            "placed_at": [line.placed_at for line in heads.values()],
            "numbers": list(heads),
            "cancellations": [line.cancellation for line in heads.values()],
            "customers": [line.customer for line in heads.values()],
            "countries": [line.country for line in heads.values()],
        },
    )


def _write_lines(session: Session, lines: Sequence[Line]) -> None:
    session.execute(
        _LINES,
        {
            "placed_at": [line.placed_at for line in lines],
            "numbers": [line.number for line in lines],
            "rows": [line.row for line in lines],
            "skus": [line.sku for line in lines],
            "quantities": [line.quantity for line in lines],
            "prices": [line.unit_price for line in lines],
        },
    )
