"""Keyset pages: a cursor names the last row seen, so a page costs the same however deep it is."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import BigInteger, Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from tenants.errors import InvalidInput, Issue

T = TypeVar("T")
MOST = 100
DEFAULT = 20


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of rows, each with its cursor."""

    items: list[T]
    cursors: list[str]
    has_next: bool
    has_previous: bool


def read(
    session: Session,
    query: Select[Any],
    key: InstrumentedAttribute[Any],
    kind: str,
    *,
    first: int | None = None,
    after: str | None = None,
    last: int | None = None,
    before: str | None = None,
    newest_first: bool = True,
) -> Page[Any]:
    """One page of a query's rows.

    Args:
        key: the column that orders them, unique within the query; a UUID or an integer.
        kind: what the cursors are for, so that another list's cursor is refused.
        first: how many from the front, 1 to 100; 20 when neither is given.
        after: only those behind this cursor.
        last: how many from the back.
        before: only those in front of this cursor.
        newest_first: descending order.

    Raises:
        InvalidInput: a number out of range, both first and last, or a cursor that is none of ours.
    """
    check(first, last)
    backwards = last is not None
    size = last if last is not None else first if first is not None else DEFAULT
    descending = newest_first != backwards
    if after is not None:
        seen = _place(key, kind, after, "after")
        query = query.where(key < seen if newest_first else key > seen)
    if before is not None:
        seen = _place(key, kind, before, "before")
        query = query.where(key > seen if newest_first else key < seen)
    rows = list(session.scalars(query.order_by(key.desc() if descending else key.asc()).limit(size + 1)))
    more = len(rows) > size
    rows = rows[:size]
    if backwards:
        rows.reverse()
    return Page(
        items=rows,
        cursors=[encode(kind, getattr(row, key.key)) for row in rows],
        has_next=before is not None if backwards else more,
        has_previous=more if backwards else after is not None,
    )


def encode(kind: str, value: UUID | int) -> str:
    """The cursor of a row."""
    text = value.hex if isinstance(value, UUID) else str(value)
    return base64.urlsafe_b64encode(f"{kind}:{text}".encode()).decode().rstrip("=")


def decode(kind: str, cursor: str, name: str) -> UUID | int:
    """The value behind a cursor.

    Raises:
        InvalidInput: the cursor is none of this list.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        given, _, digits = text.partition(":")
        value = UUID(hex=digits) if len(digits) == 32 else int(digits)
    except (ValueError, binascii.Error):
        raise not_ours(name) from None
    if given != kind or encode(kind, value) != cursor:
        raise not_ours(name)
    return value


def _place(key: InstrumentedAttribute[Any], kind: str, cursor: str, name: str) -> UUID | int:
    """The value behind a cursor, one that the column can hold."""
    value = decode(kind, cursor, name)
    most = 2**63 if isinstance(key.type, BigInteger) else 2**31
    if type(value) is not key.type.python_type or (isinstance(value, int) and not -most <= value < most):
        raise not_ours(name)
    return value


def not_ours(name: str) -> InvalidInput:
    """The error for a cursor that is none of the list's."""
    return InvalidInput("The cursor is not one of this list.", issues=[Issue((name,), "not a cursor of this list")])


def check(first: int | None, last: int | None) -> None:
    """Check how much of a list is asked for.

    Raises:
        InvalidInput: a number out of range, or both.
    """
    if first is not None and last is not None:
        raise InvalidInput("Give first or last, not both.", issues=[Issue(("last",), "give first or last, not both")])
    for name, value in (("first", first), ("last", last)):
        if value is not None and not 1 <= value <= MOST:
            raise InvalidInput(issues=[Issue((name,), f"must be 1 to {MOST}")])
