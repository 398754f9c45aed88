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

from tasks.engine import runs
from tasks.engine.models import Run, RunEvent, RunProgress
from tasks.engine.runs import RunFilter
from tasks.engine.states import TERMINAL
from tenants import signing
from tenants.errors import InvalidInput, Issue
from tenants.settings import KeyRing

_HERE = text("SELECT pg_current_snapshot()::text, installation_identity()")
_SINCE = text("""
SELECT s.snapshot::text, e.run_id, e.sequence, e.state, e.attempt, e.at
FROM (SELECT pg_current_snapshot() AS snapshot) s
LEFT JOIN LATERAL (
  SELECT run_id, sequence, state, attempt, at FROM run_events
  WHERE xid >= CAST(CAST(:xmin AS text) AS xid8)
    AND NOT pg_visible_in_snapshot(xid, CAST(CAST(:snapshot AS text) AS pg_snapshot))
  ORDER BY xid, run_id, sequence LIMIT :most
) e ON true
""")
MOST_EVENTS = 10_000
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
        query = runs.matching(select(Run), wanted).where(Run.state.not_in([str(state) for state in TERMINAL]))
        found = list(session.scalars(query.order_by(Run.id).limit(_MOST_SNAPSHOTS)))
    return Snapshot(position, found, runs.progress_of(session, [run.id for run in found]))


def since(session: Session, position: Position) -> tuple[Position, list[Event]]:
    """The tenant's events that the position does not see, in an order that keeps each run's; and the new position.

    Where there are more than `MOST_EVENTS`, the position returned is the old one: ask again for the rest by a snapshot.
    """
    rows = session.execute(_SINCE, {"xmin": position.xmin, "snapshot": position.snapshot, "most": MOST_EVENTS}).all()
    events = [Event(*row[1:]) for row in rows if row[1] is not None]
    events.sort(key=lambda event: (event.run, event.sequence))
    if len(events) >= MOST_EVENTS:
        return position, events
    return Position(rows[0][0], position.database), events


def between(session: Session, wanted: Sequence[tuple[UUID, int, int]]) -> list[Event]:
    """The events of runs after one sequence and up to another, both given for each run."""
    found: list[Event] = []
    for run, after, upto in wanted:
        found.extend(
            Event(row.run_id, row.sequence, row.state, row.attempt, row.at)
            for row in session.scalars(
                select(RunEvent)
                .where(RunEvent.run_id == run, RunEvent.sequence > after, RunEvent.sequence <= upto)
                .order_by(RunEvent.sequence)
            )
        )
    return found


def fitting(session: Session, ids: Collection[UUID], wanted: RunFilter) -> set[UUID]:
    """Which of these runs match the filter now."""
    return set(session.scalars(runs.matching(select(Run.id), wanted).where(Run.id.in_(ids))))
