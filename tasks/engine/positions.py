"""Where a reader of the ledger's events stands: a snapshot of PostgreSQL's transactions, and what came since.

Writers commit in another order than they begin, so no counter tells what a reader has missed. A snapshot does:
everything visible in it has been read, everything else has not. Source: PostgreSQL's documentation, "Transaction ID
and Snapshot Information Functions".
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import orjson
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from tasks.engine import filters, runs
from tasks.engine.filters import RunFilter
from tasks.engine.models import Run, RunProgress
from tasks.engine.states import TERMINAL
from tenants import signing
from tenants.errors import InvalidInput, Issue
from tenants.settings import KeyRing

_HERE = text("SELECT pg_current_snapshot()::text, installation_identity()")
_SINCE = text("""
SELECT s.upto::text AS upto, e.xid::text AS xid, e.run_id, e.sequence, e.state, e.attempt, e.at
FROM (SELECT coalesce(CAST(CAST(:upto AS text) AS pg_snapshot), pg_current_snapshot()) AS upto) s
LEFT JOIN LATERAL (
  SELECT xid, run_id, sequence, state, attempt, at FROM run_events
  WHERE (xid, run_id, sequence) > (CAST(CAST(:xid AS text) AS xid8), CAST(:run AS uuid), CAST(:sequence AS int))
    AND NOT pg_visible_in_snapshot(xid, CAST(CAST(:snapshot AS text) AS pg_snapshot))
    AND pg_visible_in_snapshot(xid, s.upto)
  ORDER BY xid, run_id, sequence LIMIT :most
) e ON true
""")
_BETWEEN = text("""
SELECT e.run_id, e.sequence, e.state, e.attempt, e.at
FROM unnest(CAST(:runs AS uuid[]), CAST(:after AS int[]), CAST(:upto AS int[])) AS wanted (run, after, upto)
JOIN run_events e ON e.run_id = wanted.run AND e.sequence > wanted.after AND e.sequence <= wanted.upto
""")
_PAGE = 1000
_FIRST_RUN = UUID(int=0)
_MOST_SNAPSHOTS = 1000


@dataclass(frozen=True, slots=True)
class Position:
    """Everything that this snapshot of this database sees has been read.

    Args:
        snapshot: PostgreSQL's text form, `xmin:xmax:xip,…`.
        database: which database it is of.
    """

    snapshot: str
    database: str

    @property
    def xmin(self) -> str:
        """No transaction before this one is missing."""
        return self.snapshot.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a run's state."""

    run: UUID
    sequence: int
    state: str
    attempt: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the events that a position does not see.

    Args:
        upto: the position that is reached with the last page.
        rest: what the next page begins after: transaction, run, sequence. None on the last page.
    """

    upto: Position
    events: list[Event]
    rest: tuple[str, UUID, int] | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Runs as they stand at a position, with their progress."""

    position: Position
    runs: list[Run]
    progress: dict[UUID, RunProgress]


def seal(ring: KeyRing, tenant: UUID, position: Position) -> str:
    """The position as a cursor for clients."""
    return signing.seal(ring, orjson.dumps([tenant.hex, position.database, position.snapshot, int(time.time())]))


def unseal(ring: KeyRing, tenant: UUID, cursor: str, oldest_seconds: float) -> Position | None:
    """The position behind a cursor, or None where it is too old.

    Raises:
        InvalidInput: the cursor is not one that this tenant was given.
    """
    data = signing.unseal(ring, cursor)
    if data is not None:
        owner, database, snapshot, issued = orjson.loads(data)
        if owner == tenant.hex:
            return Position(snapshot, database) if time.time() - issued < oldest_seconds else None
    raise InvalidInput(
        "The cursor is not one of this stream.", issues=[Issue(("after",), "not a cursor of this stream")]
    )


def snapshot(session: Session, wanted: UUID | RunFilter) -> Snapshot:
    """One run, or the unfinished runs that match, and the position they are of.

    Raises:
        NotFound: there is no such run.
    """
    position = Position(*session.execute(_HERE).one())
    if isinstance(wanted, UUID):
        found = [runs.get(session, wanted)]
    else:
        query = filters.matching(select(Run), wanted).where(Run.state.not_in([str(state) for state in TERMINAL]))
        found = list(session.scalars(query.order_by(Run.id).limit(_MOST_SNAPSHOTS)))
    return Snapshot(position, found, runs.progress_of(session, [run.id for run in found]))


def since(session: Session, position: Position, before: Page | None = None, *, most: int = _PAGE) -> Page:
    """A page of the tenant's events that the position does not see.

    All pages are of the moment of the first one, in the order of their transactions, which need not be a run's own.

    Args:
        before: the page before; None for the first.
        most: how many events a page has at most.
    """
    xid, run, sequence = (before and before.rest) or (position.xmin, _FIRST_RUN, 0)
    wanted = {
        "upto": before and before.upto.snapshot,
        "xid": xid,
        "run": run,
        "sequence": sequence,
        "snapshot": position.snapshot,
        "most": most,
    }
    rows = session.execute(_SINCE, wanted).all()
    events = [Event(*row[2:]) for row in rows if row.run_id is not None]
    last = rows[-1]
    return Page(
        Position(last.upto, position.database),
        events,
        rest=(last.xid, last.run_id, last.sequence) if len(events) == most else None,
    )


def between(session: Session, wanted: Sequence[tuple[UUID, int, int]]) -> list[Event]:
    """The events of runs after one sequence and up to another, both given for each run."""
    runs, after, upto = zip(*wanted, strict=True)
    rows = session.execute(_BETWEEN, {"runs": list(runs), "after": list(after), "upto": list(upto)})
    return [Event(*row) for row in rows]


def fitting(session: Session, ids: Collection[UUID], wanted: RunFilter) -> set[UUID]:
    """Which of these runs match the filter now."""
    return set(session.scalars(filters.matching(select(Run.id), wanted).where(Run.id.in_(ids))))
