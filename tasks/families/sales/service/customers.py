"""Customers as the dashboard shows them: their segment and their value beside each other."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from tasks.families.sales.models import Customer, CustomerSegment, CustomerValue
from tasks.families.sales.service import preferences
from tenants.errors import InvalidInput

MOST = 100


@dataclass(frozen=True, slots=True)
class CustomerView:
    """A customer; figures are None until the views have been refreshed with the customer in them."""

    reference: str
    country: str
    segment: str | None
    recency_days: int | None
    orders: int | None
    historic: Decimal | None
    average_order: Decimal | None
    active_probability: float | None
    predicted: Decimal | None
    currency: str


def find(session: Session, reference: str) -> CustomerView | None:
    """The customer with this number in the shop."""
    row = session.execute(_views().where(Customer.reference == reference)).mappings().one_or_none()
    return None if row is None else CustomerView(**row, currency=preferences.read(session).currency)


def best(session: Session, first: int, segment: str | None = None) -> list[CustomerView]:
    """The customers who are expected to bring most in the next twelve months, greatest first.

    Args:
        first: how many, 1 to 100.
        segment: only those of this one.

    Raises:
        InvalidInput: the number is out of range.
    """
    if not 1 <= first <= MOST:
        raise InvalidInput(f"first must be 1 to {MOST}.")
    found = _views().where(CustomerValue.predicted.is_not(None))
    if segment is not None:
        found = found.where(CustomerSegment.segment == segment)
    rows = session.execute(found.order_by(CustomerValue.predicted.desc(), Customer.reference).limit(first))
    currency = preferences.read(session).currency
    return [CustomerView(**row, currency=currency) for row in rows.mappings()]


def _views() -> Select[Any]:
    return (
        select(*_COLUMNS)
        .outerjoin(CustomerSegment, CustomerSegment.customer == Customer.reference)
        .outerjoin(CustomerValue, CustomerValue.customer == Customer.reference)
    )


_COLUMNS: tuple[Any, ...] = (
    Customer.reference,
    Customer.country,
    CustomerSegment.segment,
    CustomerSegment.recency_days,
    CustomerValue.orders,
    CustomerValue.historic,
    CustomerValue.average_order,
    CustomerValue.active_probability,
    CustomerValue.predicted,
)
