"""One tenant's events on their way to its subscribers in one API process; every buffer is bounded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import orjson
import structlog

from tasks.engine.filters import RunFilter
from tasks.engine.positions import Event, Position
from tasks.engine.states import TERMINAL, RunState
from tenants.context import Scope

log = structlog.get_logger(__name__)
_KEPT_EVENTS = 64
_KEPT_RUNS = 10_000


class UpdateKind(StrEnum):
    """What an update tells: how a run was found, what changed, how far it is; or that the cursor was too old."""

    SNAPSHOT = "SNAPSHOT"
    CHANGE = "CHANGE"
    PROGRESS = "PROGRESS"
    RESET = "RESET"


@dataclass(frozen=True, slots=True)
class Update:
    """What a subscriber gets. A RESET has no run.

    Args:
        cursor: where to go on from after a break.
        progress: current, total, message.
        coalesced: how many earlier updates of this run this one stands for.
    """

    kind: UpdateKind
    cursor: str
    at: datetime
    run_id: UUID | None = None
    sequence: int | None = None
    state: str | None = None
    attempt: int | None = None
    progress: tuple[float, float | None, str | None] | None = None
    coalesced: int = 0


@dataclass(slots=True)
class Pending:
    """What waits for a subscriber about one run."""

    events: list[Event] = field(default_factory=list)
    newest: int = 0
    progress: tuple[float, float | None, str | None] | None = None
    during: int = 0
    """The sequence of the state that the progress belongs to."""
    merged: int = 0

    def put(self, event: Event) -> None:
        """A change; of many only the number of the newest is kept, and the ledger has the others."""
        if len(self.events) < _KEPT_EVENTS:
            self.events.append(event)
        self.newest = max(self.newest, event.sequence)


class Subscriber:
    """One open subscription. Its buffer is bounded: what does not fit is read from the ledger."""

    def __init__(self, wanted: UUID | RunFilter) -> None:
        self.wanted = wanted
        self.ready = asyncio.Event()
        self.pending: dict[UUID, Pending] = {}
        self.overflown = False
        self.reached: Position | None = None
        """Every event up to here has been put."""
        self.safe: Position | None = None
        """Every event up to here has been sent: where a client that breaks off now has to go on from."""
        self.seen: dict[UUID, tuple[int, str, int]] = {}
        """Run → sequence, state and attempt last sent."""
        self._ended: set[UUID] = set()
        self._over: set[UUID] = set()
        self._leaving: set[UUID] = set()

    def put(self, event: Event) -> None:
        """An event has come."""
        if (pending := self._of(event.run)) is None:
            return
        pending.put(event)
        self.ready.set()

    def put_progress(self, run: UUID, during: int, progress: tuple[float, float | None, str | None]) -> None:
        """A run has told how far it is; the newest is enough."""
        if (pending := self._of(run)) is None:
            return
        if pending.progress is not None:
            pending.merged += 1
        pending.progress, pending.during = progress, during
        self.ready.set()

    def take(self) -> tuple[dict[UUID, Pending], Position | None]:
        """All that waits, and the position that is reached once it has been sent; None where some had no room."""
        taken, self.pending = self.pending, {}
        overflown, self.overflown = self.overflown, False
        self._leaving |= self._over
        self.ready.clear()
        return taken, None if overflown else self.reached

    def awaits(self, events: list[Event]) -> bool:
        """Whether the events are all there is to tell. Of a single run that is one of its own at least."""
        return not isinstance(self.wanted, UUID) or any(event.run == self.wanted for event in events)

    def pick(self, events: list[Event]) -> dict[UUID, Pending]:
        """Those of the events that it wants, beside those that wait."""
        picked: dict[UUID, Pending] = {}
        for event in events:
            if self.wanted == event.run or not isinstance(self.wanted, UUID):
                picked.setdefault(event.run, Pending()).put(event)
        return picked

    def reach(self, position: Position) -> None:
        """The ledger has been read up to the position. What had ended when it was last reached is not told of again."""
        self.reached = position
        if len(self.seen) > _KEPT_RUNS:
            self._over |= self._ended
            self._ended = {run for run, (_, state, _) in self.seen.items() if state in TERMINAL}

    def forget_ended(self) -> None:
        """What was taken has been sent: of many ended runs forget those that the ledger told of for the last time.

        The others are remembered, since Redis may tell of them late.
        """
        surplus = len(self.seen) - _KEPT_RUNS
        if surplus > 0:
            for run in [run for run in self.seen if run in self._leaving][:surplus]:
                del self.seen[run]
            self._leaving &= self.seen.keys()
            self._over &= self.seen.keys()

    def _of(self, run: UUID) -> Pending | None:
        if isinstance(self.wanted, UUID) and run != self.wanted:
            return None
        if run not in self.pending and len(self.pending) >= _KEPT_RUNS:
            self.overflown = True
            self.ready.set()
            return None
        return self.pending.setdefault(run, Pending())


class Feed:
    """One tenant's events, for all its subscribers in this process."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.last_id = "$"
        self.readable = True
        """Whether its key in Redis is a stream."""
        self.position: Position | None = None
        self.everything: set[Subscriber] = set()
        self.single: dict[UUID, set[Subscriber]] = {}

    def add(self, subscriber: Subscriber) -> None:
        self._place(subscriber).add(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        self._place(subscriber).discard(subscriber)
        if isinstance(subscriber.wanted, UUID) and not self.single[subscriber.wanted]:
            del self.single[subscriber.wanted]

    def empty(self) -> bool:
        return not self.everything and not self.single

    def interested(self, run: UUID) -> list[Subscriber]:
        return [*self.everything, *self.single.get(run, ())]

    def hear(self, data: bytes) -> None:
        """An entry of the tenant's stream."""
        try:
            notices = orjson.loads(data)
            if not isinstance(notices, list):
                raise ValueError("no list")
        except ValueError:
            log.warning("stream_entry_unreadable")
            return
        for notice in notices:
            try:
                self._hear(notice)
            except (ValueError, KeyError, TypeError, AttributeError):
                log.warning("stream_entry_unreadable")

    def put(self, events: list[Event]) -> None:
        """Events of the ledger."""
        for event in events:
            for subscriber in self.interested(event.run):
                subscriber.put(event)

    def reach(self, position: Position) -> None:
        """The ledger has been read up to the position."""
        self.position = position
        for subscriber in [*self.everything, *(one for group in self.single.values() for one in group)]:
            subscriber.reach(position)

    def _hear(self, notice: Any) -> None:
        run = UUID(notice["r"])
        if notice["k"] == "P":
            current, total, message = notice["p"]
            numbers = _is_number(current) and (total is None or _is_number(total)) and _is_count(notice["s"])
            if not (numbers and isinstance(message, str | None)):
                raise ValueError("no progress")
            for subscriber in self.interested(run):
                subscriber.put_progress(run, notice["s"], (current, total, message))
            return
        sequence, attempt = notice["s"], notice["a"]
        if not (_is_count(sequence) and _is_count(attempt)):
            raise ValueError("no change")
        event = Event(run, sequence, RunState(notice["st"]), attempt, datetime.fromisoformat(notice["t"]))
        for subscriber in self.interested(run):
            subscriber.put(event)

    def _place(self, subscriber: Subscriber) -> set[Subscriber]:
        if isinstance(subscriber.wanted, UUID):
            return self.single.setdefault(subscriber.wanted, set())
        return self.everything


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
