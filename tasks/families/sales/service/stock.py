"""Stock at hand, and alerts for products that fell below their reorder point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import delete, select, text
from sqlalchemy.orm import Session

from tasks.families.sales.models import Product, StockAlert
from tenants import audit
from tenants.errors import InvalidInput, NotFound

_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Count:
    """What was counted of one product."""

    sku: str
    stock: int
    reorder_point: int


def low(session: Session) -> list[Product]:
    """The products below their reorder point, the emptiest in proportion first."""
    emptiest = Product.stock * 1.0 / Product.reorder_point
    return list(
        session.scalars(
            select(Product)
            .where(Product.stocked, Product.stock < Product.reorder_point)
            .order_by(emptiest, Product.sku)
        )
    )


def record(session: Session, counts: Sequence[Count]) -> None:
    """Note what was counted.

    Raises:
        InvalidInput: a number is negative or too great.
        NotFound: there is no such product; nothing is noted.
    """
    for count in counts:
        if not (0 <= count.stock <= _LARGEST and 0 <= count.reorder_point <= _LARGEST):
            raise InvalidInput(f"Stock and reorder point of {count.sku} must lie between 0 and {_LARGEST}.")
    found = session.scalars(
        _RECORD,
        {
            "skus": [count.sku for count in counts],
            "stocks": [count.stock for count in counts],
            "points": [count.reorder_point for count in counts],
        },
    )
    if len(found.all()) != len(counts):
        raise NotFound("There is no such product.")
    audit.record(session, "family.set", "sales.stock", after={"counts": [asdict(count) for count in counts]})


def raise_alerts(session: Session, now: datetime) -> list[Product]:
    """Open an alert for each product that fell below its reorder point, close those of products that are above again.

    Returns:
        The products whose alert is new: people have not been told of them yet.
    """
    session.execute(
        delete(StockAlert)
        .where(StockAlert.sku.not_in(select(Product.sku).where(Product.stock < Product.reorder_point)))
        .execution_options(synchronize_session=False)
    )
    known = set(session.scalars(select(StockAlert.sku)))
    new = [product for product in low(session) if product.sku not in known]
    session.add_all(StockAlert(sku=product.sku, raised_at=now) for product in new)
    return new


_RECORD = text("""
    UPDATE sales_products SET stock = counts.stock, reorder_point = counts.reorder_point
    FROM unnest(cast(:skus AS text[]), cast(:stocks AS int[]), cast(:points AS int[]))
         AS counts (sku, stock, reorder_point)
    WHERE sales_products.sku = counts.sku RETURNING sales_products.sku
""")
