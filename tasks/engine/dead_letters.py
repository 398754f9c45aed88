"""Dead letters in groups: the runs that FAILED or TIMED_OUT for the same reason and wait for a person.

A dead letter is open until a run repeats it, whoever asked for that: then it belongs to no group any more, and the new
run speaks for it. If that one fails too, it is the dead letter, most often in the same group. So a group counts the
work that still needs somebody, each piece once, and a group without open dead letters does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, func, literal, select, tuple_
from sqlalchemy.orm import Session

from tasks.engine.models import Run
from tenants import pages
from tenants.errors import NotFound
from tenants.models import Key, Moment
from tenants.pages import Page

OPEN = (Run.fingerprint.is_not(None), Run.retried_by.is_(None))
"""The condition of an open dead letter."""
_CURSOR = "dlg"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HALF = (1 << 64) - 1
_Groups = Select[UUID | None, int, datetime | None, datetime | None]


@dataclass(frozen=True, slots=True)
class Group:
    """Open dead letters of one task with one error.

    Args:
        id: the fingerprint, which no other tenant's group has.
        message: that of the newest run among them.
        first_at: when the first of them ended.
        last_at: when the last of them ended.
    """

    id: UUID
    task: str
    error_type: str
    message: str
    count: int
    first_at: datetime
    last_at: datetime


def page(session: Session, *, first: int | None = None, after: str | None = None) -> Page[Group]:
    """One page of groups; the one that grew last comes first.

    Raises:
        InvalidInput: a number out of range, or a cursor that is none of ours.
    """
    pages.check(first, None)
    size = pages.DEFAULT if first is None else first
    query = _groups()
    if after is not None:
        last_at, group = _place(after)
        behind = tuple_(literal(last_at, Moment), literal(group, Key))
        query = query.having(tuple_(func.max(Run.finished_at), Run.fingerprint) < behind)
    found = _read(session, query, size + 1)
    return Page(
        items=found[:size],
        cursors=[_cursor(group) for group in found[:size]],
        has_next=len(found) > size,
        has_previous=after is not None,
    )


def get(session: Session, group_id: UUID) -> Group:
    """One group.

    Raises:
        NotFound: the tenant has no open dead letter of this group.
    """
    found = _read(session, _groups().where(Run.fingerprint == group_id), 1)
    if not found:
        raise NotFound
    return found[0]


def _groups() -> _Groups:
    return (
        select(
            Run.fingerprint.label("id"),
            func.count().label("runs"),
            func.min(Run.finished_at).label("first_at"),
            func.max(Run.finished_at).label("last_at"),
        )
        .where(*OPEN)
        .group_by(Run.fingerprint)
    )


def _read(session: Session, query: _Groups, most: int) -> list[Group]:
    """The groups that grew last, each with its newest run's task and error."""
    order = (func.max(Run.finished_at).desc(), Run.fingerprint.desc())
    groups = query.order_by(*order).limit(most).subquery()
    newest = (
        select(Run.task, Run.error)
        .where(Run.fingerprint == groups.c.id, Run.retried_by.is_(None))
        .order_by(Run.id.desc())
        .limit(1)
        .lateral()
    )
    rows = session.execute(select(groups, newest).order_by(groups.c.last_at.desc(), groups.c.id.desc()))
    return [_group(row) for row in rows]


def _group(row: Row[Any]) -> Group:
    error = row.error or {}
    return Group(
        id=row.id,
        task=row.task,
        error_type=str(error.get("type", "")),
        message=str(error.get("message", "")),
        count=row.runs,
        first_at=row.first_at,
        last_at=row.last_at,
    )


def _cursor(group: Group) -> str:
    """A group's place in the order: the microsecond of its last end, and as much of its id as tells it from others."""
    microseconds = (group.last_at - _EPOCH) // timedelta(microseconds=1)
    return pages.encode(_CURSOR, UUID(int=microseconds << 64 | group.id.int >> 64))


def _place(cursor: str) -> tuple[datetime, UUID]:
    value = pages.decode(_CURSOR, cursor, "after")
    try:
        if isinstance(value, int):
            raise OverflowError
        return _EPOCH + timedelta(microseconds=value.int >> 64), UUID(int=(value.int & _HALF) << 64)
    except OverflowError:
        raise pages.not_ours("after") from None
