"""The hot paths to the ledger: one SQL function, one round trip, on a connection of their own."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import psycopg2
from psycopg2 import extensions, extras
from sqlalchemy.exc import DBAPIError

from tasks.engine import documents
from tasks.engine.outcomes import Cancel, Fenced
from tasks.engine.states import RunState
from tenants import ids, log, postgres
from tenants.settings import Engine

extras.register_uuid()  # type: ignore[no-untyped-call]
Holding = tuple[UUID, int]
"""A run and the fence under which it is held."""
FENCED = "TN010"
NOT_LEADING = "TN011"
CANCELLED = "TN012"
SHARD = "main"
"""What dispatchers take the lead of: all runs are of the one shard."""
_WAITED = {"57014", "55P03"}
"""A statement, or a lock that it asked for, took longer than it may. Source: PostgreSQL, appendix A."""
_LONGEST_NOTE = 2000
_STATEMENT_SHARE = 5 / 6
"""Of the time for an answer, what PostgreSQL may spend on the statement."""


class NotLeading(Exception):
    """Another dispatcher leads now."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a worker holds after it claimed a run."""

    sequence: int
    attempt: int
    max_attempts: int
    args: dict[str, Any]
    effects_of: UUID
    at: datetime
    held: bool


@dataclass(frozen=True, slots=True)
class Settlement:
    """How an attempt is to end.

    Args:
        state: the run's next state.
        keep: what the attempt's session holds is committed with it; else it is rolled back.
        result: the body's result, JSON.
        error: type, message, retryable, traceback.
        event: for WAITING, what the run waits for.
        delay_seconds: for SCHEDULED, how long from now.
        give_back: the attempt does not count.
        note: for the event, for people.
    """

    state: RunState
    keep: bool = False
    result: Any = None
    error: dict[str, Any] | None = None
    event: str | None = None
    delay_seconds: float = 0.0
    give_back: bool = False
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a run's state that has been committed."""

    tenant: UUID
    run: UUID
    state: str
    sequence: int
    attempt: int
    at: datetime
    queue: str = ""


class Ledger:
    """One autocommit connection over psycopg2, reopened when it breaks. Safe to share between threads.

    Args:
        address: a `postgresql://` address.
        engine: the settings of the engine.
        application: the connection's name in PostgreSQL.
        answer_seconds: how long a call may wait for its answer, instead of the engine's. PostgreSQL gives its statement
            up a little earlier, so that only on a dead line no answer comes.
    """

    def __init__(self, address: str, engine: Engine, *, application: str, answer_seconds: float | None = None) -> None:
        self._address = address
        self._engine = engine
        self._application = application
        self._answer_seconds = answer_seconds or engine.answer_seconds
        self._connection: extensions.connection | None = None
        self._lock = threading.Lock()
        self._step = timedelta(seconds=engine.priority_step_seconds)

    def call(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement in its own transaction; on a broken connection once more on a new one.

        Raises:
            Fenced: the attempt has been replaced or its lease has expired.
            Cancel: its run is to be cancelled, and it was about to begin an effect.
            NotLeading: the dispatcher's epoch is over.
            psycopg2.OperationalError: the database can't be reached or does not answer in time, or the statement took
                longer than it may.
        """
        with self._lock:
            try:
                return self._run(statement, values)
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                if error.pgcode in _WAITED:
                    raise
                connected = self._connection is not None
                self.close()
                if not connected:
                    raise
                return self._run(statement, values)

    def claim(self, tenant: UUID, run: UUID, fence: int, task: str, worker: str, hard_seconds: float) -> Claim | None:
        """Take a released run; None when the release is stale.

        Args:
            worker: the name of the worker process.
            hard_seconds: the attempt's deadline from now.
        """
        rows = self.call(
            "SELECT * FROM claim_run(%s, %s, %s, %s, %s, %s, %s, %s)",
            tenant,
            run,
            fence,
            task,
            worker,
            timedelta(seconds=self._engine.lease_seconds),
            timedelta(seconds=hard_seconds),
            ids.new(),
        )
        if not rows:
            return None
        verdict, sequence, attempt, max_attempts, args, effects_of, at = rows[0]
        return Claim(sequence, attempt, max_attempts, args or {}, effects_of, at, verdict == "held")

    def settle(self, tenant: UUID, run: UUID, fence: int, settlement: Settlement) -> Change:
        """End an attempt that holds no session.

        Raises:
            Fenced: the attempt has been replaced or its lease has expired.
        """
        rows = self.call(SETTLE, *settle_values(tenant, run, fence, settlement, self._step))
        return settled(tenant, run, rows[0])

    def report_crash(self, tenant: UUID, run: UUID, fence: int, cause: str) -> Change | None:
        """An attempt died with its process: rescue its run at once. None when it had ended before."""
        rows = self.call(
            "SELECT * FROM report_crash(%s, %s, %s, %s, %s, %s)",
            tenant,
            run,
            fence,
            cause,
            self._engine.max_crashes,
            self._step,
        )
        return changes(rows)[0] if rows else None

    def renew(
        self, worker: str, runs: Sequence[UUID], fences: Sequence[int]
    ) -> dict[Holding, tuple[str, str | None, float]]:
        """Renew leases: each's (run, fence) → (renewed, busy or gone; why it is to stop; seconds to its deadline)."""
        rows = self.call(
            "SELECT * FROM renew_leases(%s, %s, %s, %s)",
            worker,
            list(runs),
            list(fences),
            timedelta(seconds=self._engine.lease_seconds),
        )
        return {(run, fence): (verdict, stop, seconds) for run, fence, verdict, stop, seconds in rows}

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            with contextlib.suppress(psycopg2.Error):
                self._connection.close()
            self._connection = None

    def abandon(self) -> None:
        """In a forked child: close the inherited descriptor without a word to the server, which serves the parent."""
        if self._connection is not None:
            close_descriptor(self._connection)
            self._connection = None

    def _run(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = self._connect()
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
        except psycopg2.Error as error:
            raise translated(error) from error

    def _connect(self) -> extensions.connection:
        options = extensions.parse_dsn(self._address).get("options", "")
        made: postgres.Connection = psycopg2.connect(
            self._address,
            connection_factory=postgres.Connection,
            application_name=self._application,
            options=f"{options} -c statement_timeout={self._answer_seconds * _STATEMENT_SHARE * 1000:.0f}",
            **postgres.LINE,
        )
        made.answer_seconds = self._answer_seconds
        made.autocommit = True
        return made


SETTLE = "SELECT * FROM settle_run(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"


def settle_values(tenant: UUID, run: UUID, fence: int, settlement: Settlement, step: timedelta) -> tuple[Any, ...]:
    """The values of the settling statement."""
    return (
        tenant,
        run,
        fence,
        settlement.state.value,
        None if settlement.result is None else orjson.dumps(settlement.result).decode(),
        None if settlement.error is None else orjson.dumps(_readable(settlement.error)).decode(),
        settlement.event,
        settlement.delay_seconds,
        settlement.give_back,
        None if settlement.note is None else documents.readable(log.blot(settlement.note)[:_LONGEST_NOTE]),
        step,
    )


def settled(tenant: UUID, run: UUID, row: Sequence[Any], *, alone: bool = True) -> Change:
    """The settling statement's answer.

    Args:
        alone: whether its transaction holds nothing else, so that it may have been settled before.

    Raises:
        Fenced: it was settled before, by a transaction that held other work.
    """
    state, sequence, attempt, at, replayed = row
    if replayed and not alone:
        raise Fenced("fenced: settled before")
    return Change(tenant, run, state, sequence, attempt, at)


def changes(rows: Sequence[Sequence[Any]]) -> list[Change]:
    """The answer of the functions that move several runs: tenant, run, queue, state, sequence, attempt, time."""
    return [
        Change(tenant, run, state, sequence, attempt, at, queue)
        for tenant, run, queue, state, sequence, attempt, at in rows
    ]


def translated(error: psycopg2.Error) -> Exception:
    """The engine's own error for the codes that its functions raise; any other unchanged."""
    if error.pgcode == FENCED:
        return Fenced(str(error).partition("\n")[0])
    if error.pgcode == NOT_LEADING:
        return NotLeading()
    if error.pgcode == CANCELLED:
        return Cancel("cancelled while running")
    return error


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """SQLAlchemy's wrapper around an error that the engine's functions raise becomes the engine's own error."""
    try:
        yield
    except DBAPIError as error:
        if isinstance(error.orig, psycopg2.Error) and (own := translated(error.orig)) is not error.orig:
            raise own from None
        raise


def close_descriptor(connection: extensions.connection) -> None:
    """Close a connection's socket in a forked child without a word to the server.

    The object is kept: collecting it would say good-bye on a descriptor that may by then be another's.
    """
    _ABANDONED.append(connection)
    with contextlib.suppress(OSError, psycopg2.Error):
        os.close(connection.fileno())


def _readable(error: dict[str, Any]) -> dict[str, Any]:
    """What an exception says may hold anything; that it failed must be told all the same."""
    return {name: documents.readable(value) if isinstance(value, str) else value for name, value in error.items()}


_ABANDONED: list[extensions.connection] = []
