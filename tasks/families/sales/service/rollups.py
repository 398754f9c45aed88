"""The dashboard's views: rollup tables, each replaced as a whole in the caller's transaction.

Readers see the old figures until the commit and the new ones after it. Two refreshes of one view wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CursorResult, Select, delete, func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from tasks.families.sales.models import (
    CountryDay,
    CustomerSegment,
    CustomerValue,
    Day,
    Hour,
    ProductDay,
    Refresh,
)
from tasks.families.sales.service import lifetimes, measures, periods, segments
from tenants.db import Base

HOURS = 48


@dataclass(frozen=True, slots=True)
class View:
    """One rollup table and the statement that fills it.

    Args:
        name: for people, and the key of its last refresh.
        table: where its rows stand.
        rows: the rows as of a moment.
    """

    name: str
    table: type[Base]
    rows: Callable[[Session, datetime], Select[Any]]


def _hours(session: Session, as_of: datetime) -> Select[Any]:
    return measures.by_hour(as_of - timedelta(hours=HOURS), as_of, periods.zone(session))


def _days(session: Session, as_of: datetime) -> Select[Any]:
    return measures.by_day(None, as_of, periods.zone(session))


def _countries(session: Session, as_of: datetime) -> Select[Any]:
    return measures.by_country(None, as_of, periods.zone(session))


def _products(session: Session, as_of: datetime) -> Select[Any]:
    return measures.by_product(None, as_of, periods.zone(session))


REALTIME = (View("hours", Hour, _hours),)
DAILY = (View("days", Day, _days), View("countries", CountryDay, _countries), View("products", ProductDay, _products))
SEGMENTS = (View("segments", CustomerSegment, segments.assign),)
LIFETIMES = (View("lifetime values", CustomerValue, lifetimes.estimate),)
ALL = (*REALTIME, *DAILY, *SEGMENTS, *LIFETIMES)


def refresh(session: Session, views: tuple[View, ...], as_of: datetime) -> Iterator[tuple[View, int]]:
    """Replace the views one after the other, yielding each with its new number of rows.

    Args:
        views: in the order of `ALL`, so that two refreshes never wait for each other crosswise.
        as_of: orders placed before this moment count.
    """
    measures.prepare(session)
    for view in views:
        yield view, _replace(session, view, as_of)


def refreshed_at(session: Session) -> datetime | None:
    """When any view was refreshed last; None if none ever was."""
    return session.scalar(select(func.max(Refresh.refreshed_at)))


def _replace(session: Session, view: View, as_of: datetime) -> int:
    lock = func.hashtextextended(f"sales.{view.name}:" + func.current_setting("app.tenant_id"), 0)
    session.execute(select(func.pg_advisory_xact_lock(lock)))
    session.execute(delete(view.table))
    rows = view.rows(session, as_of)
    done = session.execute(insert(view.table).from_select([column.name for column in rows.selected_columns], rows))
    assert isinstance(done, CursorResult)
    stamp = {"as_of": as_of, "refreshed_at": func.clock_timestamp(), "rows": done.rowcount}
    session.execute(
        upsert(Refresh)
        .values(view=view.name, **stamp)
        .on_conflict_do_update(index_elements=[Refresh.tenant_id, Refresh.view], set_=stamp)
    )
    return done.rowcount
