"""Partitions are made ahead of time, and what is over goes: beside the dispatcher's loop, which it must not hold up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from psycopg2 import errors

from tasks.engine.ledger import Ledger
from tenants.settings import Engine

log = structlog.get_logger(__name__)
_EVERY_SECONDS = 3600.0
_USAGE_SECONDS = 1.0
"""How often usage is added up: what a tenant has used since is counted anew for each run that its plan must have room
for."""
_SEAL_SECONDS = 1.0
"""How often the audit log is sealed."""
_SEALED = 1000
"""Entries at a time: a tenth of a second."""
_AGAIN_SECONDS = 300.0
"""After a round that was cut short, or found a table in use."""
_KEPT = timedelta(days=7)
"""How long it can be seen that a login or a link in a mail has ended."""
_PARTITIONS_AHEAD_DAYS = 30
_PORTION = 5000
_ANSWER_SECONDS = 360.0
"""Longer than a dispatcher's usual one: a week of runs is read as a whole before it is dropped."""
_END_SECONDS = 2.0
_LIMIT_STATES = """
WITH gone AS (
  DELETE FROM limit_states WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM limit_states WHERE arrival < extract(epoch FROM now()) LIMIT %s FOR UPDATE SKIP LOCKED))
  RETURNING 1
)
SELECT count(*) FROM gone
"""
_WORKERS = """
WITH gone AS (DELETE FROM workers WHERE last_seen < now() - interval '1 hour' RETURNING 1) SELECT count(*) FROM gone
"""
Portions = Iterator[None]
"""A step of the house's keeping: stops after each of its short transactions."""


class Housekeeping:
    """A thread with a connection of its own, which works in short transactions.

    Several may be at it at once: of several dispatchers, or of one that leads again before it has noticed.

    Args:
        address: a `postgresql://` address of the system login.
        engine: the settings of the engine.
    """

    def __init__(self, address: str, engine: Engine) -> None:
        self._address = address
        self._engine = engine
        self._retention = timedelta(days=engine.retention_days)
        self._next = self._usage_next = self._seal_next = 0.0
        self._effects_due = True
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Keep house from now on: every hour, for the first time at once; usage and the audit log every second."""
        self.end()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._ended,), name="housekeeping", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Begin no further portion."""
        self._ended.set()

    def join(self) -> None:
        """Wait for the end of the portion that it is at, but not for long."""
        if self._thread is not None:
            self._thread.join(_END_SECONDS)

    def _run(self, ended: threading.Event) -> None:
        ledger = Ledger(
            self._address, self._engine, application="tenantry-housekeeping", answer_seconds=_ANSWER_SECONDS
        )
        while not ended.wait(max(0.0, min(self._next, self._usage_next, self._seal_next) - time.monotonic())):
            self._add_up(ledger)
            self._seal(ledger)
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + _AGAIN_SECONDS
                if self._round(ledger, ended):
                    self._next = time.monotonic() + _EVERY_SECONDS
        ledger.close()

    def _round(self, ledger: Ledger, ended: threading.Event) -> bool:
        """Every step; one that fails does not keep the others from it.

        Returns whether none is to be taken up again soon.
        """
        whole = True
        for step in (
            self._partitions,
            self._idempotency_keys,
            self._limit_states,
            self._bulk_actions,
            self._workers,
            self._links,
            self._logins,
            self._ended_weeks,
            self._effects,
        ):
            if ended.is_set():
                return False
            try:
                whole &= self._carry_out(ledger, step(ledger), ended)
            except errors.LockNotAvailable:
                log.info("housekeeping_put_off", step=step.__name__.strip("_"))
                whole = False
            except Exception:
                log.exception("housekeeping_failed", step=step.__name__.strip("_"))
        return whole

    def _carry_out(self, ledger: Ledger, step: Portions, ended: threading.Event) -> bool:
        """A step, resting after each portion as long as it took; whether it came to its end."""
        started = time.monotonic()
        for _ in step:
            if ended.wait(time.monotonic() - started):
                return False
            self._add_up(ledger)
            self._seal(ledger)
            started = time.monotonic()
        return True

    def _add_up(self, ledger: Ledger) -> None:
        """Add what tenants have used to their figures, when it is time; what is left at the next."""
        if time.monotonic() < self._usage_next:
            return
        try:
            full = ledger.call("SELECT fold_usage(%s)", _PORTION)[0][0] >= _PORTION
            self._usage_next = time.monotonic() + (_USAGE_SECONDS / 10 if full else _USAGE_SECONDS)
        except Exception:
            log.exception("usage_not_added_up")
            self._usage_next = time.monotonic() + 10 * _USAGE_SECONDS

    def _seal(self, ledger: Ledger) -> None:
        """Chain what the audit log has been told since, when it is time; what is left at the next."""
        if time.monotonic() < self._seal_next:
            return
        try:
            # A portion that falls short of the most by its tenants' shares alone has more behind it.
            full = ledger.call("SELECT seal_audit(%s)", _SEALED)[0][0] >= _SEALED / 10
            self._seal_next = time.monotonic() + (_SEAL_SECONDS / 10 if full else _SEAL_SECONDS)
        except Exception:
            log.exception("audit_not_sealed")
            self._seal_next = time.monotonic() + 10 * _SEAL_SECONDS

    def _partitions(self, ledger: Ledger) -> Portions:
        return _until_none(ledger, "SELECT ensure_partitions(%s, 1)", _PARTITIONS_AHEAD_DAYS)

    def _idempotency_keys(self, ledger: Ledger) -> Portions:
        return _until_none(ledger, "SELECT delete_expired_keys(%s)", _PORTION)

    def _limit_states(self, ledger: Ledger) -> Portions:
        return _until_none(ledger, _LIMIT_STATES, _PORTION)

    def _bulk_actions(self, ledger: Ledger) -> Portions:
        statement = "SELECT delete_finished_bulk_actions(clock_timestamp() - %s, %s)"
        return _until_none(ledger, statement, self._retention, _PORTION)

    def _workers(self, ledger: Ledger) -> Portions:
        return _until_none(ledger, _WORKERS)

    def _links(self, ledger: Ledger) -> Portions:
        return _until_none(ledger, "SELECT delete_ended_links(now() - %s, %s)", _KEPT, _PORTION)

    def _logins(self, ledger: Ledger) -> Portions:
        return _until_none(ledger, "SELECT delete_ended_logins(now() - %s, %s)", _KEPT, _PORTION)

    def _ended_weeks(self, ledger: Ledger) -> Portions:
        for _ in _until_none(ledger, "SELECT drop_ended_partitions(clock_timestamp() - %s)", self._retention):
            self._effects_due = True
            yield

    def _effects(self, ledger: Ledger) -> Portions:
        """Those of runs that are gone: looked for when runs have gone, and once in a dispatcher's life."""
        place: tuple[Any, ...] = (UUID(int=0), "")
        statement = "SELECT * FROM delete_effects_of_no_run(clock_timestamp() - %s, %s, %s, %s)"
        while self._effects_due:
            rows = ledger.call(statement, self._retention, *place, _PORTION)
            self._effects_due = bool(rows)
            place = rows[0] if rows else place
            yield


def _until_none(ledger: Ledger, statement: str, *values: Any) -> Portions:
    """A statement that returns how much it did, until it is nothing."""
    while ledger.call(statement, *values)[0][0]:
        yield
