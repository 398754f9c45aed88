"""What a task body holds: its run, its session, its steps, its effects, its progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast
from uuid import UUID

import psycopg2
import structlog
from pydantic import SecretStr
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from tasks.engine import effects, publish, requests, runs
from tasks.engine.attempts import Attempt, Desk
from tasks.engine.board import Phase, Reason
from tasks.engine.ledger import SETTLE, Change, Settlement, own_errors, settle_values, settled
from tasks.engine.models import RunStep
from tasks.engine.outcomes import Fail, Interrupted
from tenants import credentials, db, ids, log
from tenants.context import ActorKind, Principal
from tenants.settings import LONGEST_ATTEMPT_SECONDS, Settings

T = TypeVar("T")
_PROGRESS_SECONDS = 1.0
_STREAM_SECONDS = 0.25
_LONGEST_EXTENSION_SECONDS = 3600.0


@dataclass
class RunContext:
    """Handed to a task body as its first argument."""

    attempt_held: Attempt
    desk: Desk
    _session: db.TenantSession | None = None
    _pending: bool = False
    _interrupted: bool = False
    _settling: bool = False
    _extended: float = 0.0
    _progress_saved: float = 0.0
    _progress_sent: float = 0.0
    _progress: publish.Progress | None = None
    _progress_told: publish.Progress | None = None
    _after: list[publish.Notice] = field(default_factory=list)
    _triggered: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._slot = self.desk.slot()
        self.log = structlog.get_logger("tasks").bind(run=self.run_id, task=self.attempt_held.definition.name)

    @property
    def run_id(self) -> str:
        """The run's outside id, `run_…`."""
        return ids.show("run", self.attempt_held.run)

    @property
    def run(self) -> UUID:
        """The run's id."""
        return self.attempt_held.run

    @property
    def tenant(self) -> UUID:
        """Whose run it is."""
        return self.attempt_held.tenant

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self.attempt_held.number

    @property
    def now(self) -> datetime:
        """The time of the claim, UTC, by the database's clock."""
        return self.attempt_held.claimed_at

    @property
    def settings(self) -> Settings:
        """The installation's settings."""
        return self.desk.settings

    @property
    def session(self) -> Session:
        """A session inside the tenant, opened at first use. It commits together with the run's SUCCEEDED."""
        if self._session is None:
            self._session = self._open()
        return self._session

    @property
    def system(self) -> Engine:
        """The cross-tenant door, for operators' tasks on an operators' worker.

        Raises:
            Fail: this task or this worker has none.
        """
        if not self.attempt_held.definition.operator_only:
            raise Fail("This task is not for operators only.")
        if self.desk.system_engine is None:
            raise Fail("This task runs on a worker that was started with DATABASE_SYSTEM_URL.")
        return self.desk.system_engine

    def step(self, name: str, work: Callable[[Session], T]) -> T:
        """Do part of the work in a transaction of its own, once: a later attempt gets the stored value instead.

        Args:
            name: the step's name within the run.
            work: gets a session; its JSON value is stored with the step's mark, in the same commit.

        Raises:
            Fenced: the attempt has been replaced; the step is rolled back.
        """
        self.checkpoint()
        with self._open() as session:
            done = session.get(RunStep, (self.tenant, self.run, name))
            if done is not None:
                return cast("T", done.value)
            value = work(session)
            session.add(
                RunStep(tenant_id=self.tenant, run_id=self.run, step=name, value=value, fence=self.attempt_held.fence)
            )
            session.flush()
            with self.protected(), own_errors():
                session.execute(
                    text("SELECT hold_lease(:run, :fence)"), {"run": self.run, "fence": self.attempt_held.fence}
                )
                session.commit()
            self._after.extend(cast("list[publish.Notice]", db.notices(session)))
        self._flush()
        return value

    def effect(
        self, key: str, call: effects.Call, *, look_up: effects.LookUp | None = None, repeatable: bool = False
    ) -> Any:
        """Do something outside at most once for this run and all that repeat it with the same arguments.

        Args:
            key: the effect's name within the run.
            call: does it; gets the idempotency key to hand to the provider.
            look_up: asks the provider whether an earlier attempt had done it, of which no answer came; None if not.
            repeatable: the provider does a call with a known idempotency key once only, however often it comes.

        Returns:
            The call's JSON answer, or the stored one.

        Raises:
            effects.Unconfirmed: no answer came to an earlier attempt, and nobody can tell whether it was done.
            Cancel: the run is to be cancelled: nothing more begins outside.
        """
        self.checkpoint()
        held = self.attempt_held
        door = effects.Door(self.desk.ledger, held.tenant, held.run, held.fence, held.effects_of)
        with self.protected():
            return effects.once(door, key, call, look_up, repeatable=repeatable)

    def trigger(self, task_name: str, args: dict[str, Any] | None = None, **options: Any) -> str:
        """Trigger another run in the session's transaction: both commit or neither. Returns its id.

        It is checked at once, and accepted just before the commit, so that no limit on what may wait is held meanwhile;
        only one with an idempotency key, which may mean an earlier run, is accepted here.

        Args:
            options: further fields of `runs.TriggerRequest`.
        """
        request = runs.TriggerRequest(task_name, args or {}, **options)
        if request.idempotency_key is not None:
            return ids.show("run", runs.trigger(self.session, request).run.id)
        checked = requests.check(self.session, request)
        self._triggered.append(checked)
        return ids.show("run", UUID(checked["id"]))

    def credential(self, name: str) -> SecretStr:
        """The secret of one of the tenant's integration credentials; the attempt blots it out of its logs and errors.

        Raises:
            NotFound: the tenant has none of this name.
        """
        return credentials.reveal(self.session, self.settings.auth.credential_keys, name)

    def progress(self, current: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the run is. Cheap: a few a second are streamed, at most one a second is stored."""
        held = self.attempt_held
        message = None if message is None else log.blot(message)
        self._progress = publish.Progress(held.tenant, held.run, held.sequence, held.number, current, total, message)
        now = time.monotonic()
        if now - self._progress_sent >= _STREAM_SECONDS:
            # Who hears of its progress must know that it runs, which may not have been told yet.
            self.desk.send([self._progress] if self._progress_sent else [held.begun, self._progress])
            self._progress_sent, self._progress_told = now, self._progress
        if now - self._progress_saved >= _PROGRESS_SECONDS:
            self._progress_saved = now
            self._save_progress()
        self.checkpoint()

    def extend(self, seconds: float) -> None:
        """Move both time limits later, by at most an hour at once, and in all to at most a day after the claim.

        Args:
            seconds: how much later, more than 0.

        Raises:
            ValueError: that is no time.
            Fenced: the attempt has been replaced.
        """
        if not seconds > 0:
            raise ValueError(f"An attempt's time is extended by more than 0 seconds, not {seconds!r}.")
        held = self.attempt_held
        left = LONGEST_ATTEMPT_SECONDS - held.definition.hard_seconds - self._extended
        by = min(seconds, _LONGEST_EXTENSION_SECONDS, left)
        self.desk.ledger.call(
            "SELECT extend_run(%s, %s, %s, %s)", held.tenant, held.run, held.fence, timedelta(seconds=by)
        )
        self.desk.board.extend(self._slot, by)
        self._extended += by
        if self._session is not None:
            db.stay_idle(self._session, held.definition.hard_seconds + self._extended)

    def checkpoint(self) -> None:
        """A place where the run may be stopped.

        Raises:
            Interrupted: it was cancelled, is out of time, or was replaced.
        """
        slot = self.desk.board.read(self._slot)
        if slot is not None and slot.reason is not Reason.NONE and slot.run == self.run:
            self._interrupted = True  # No signal that comes now interrupts what follows from this.
            raise Interrupted(slot.reason)

    def interrupt(self) -> None:
        """The soft signal: stop here, or at the end of the part that must not be torn."""
        slot = self.desk.board.read(self._slot)
        if slot is None or slot.run != self.run or slot.fence != self.attempt_held.fence:
            return
        if slot.phase is Phase.PROTECTED:
            self._pending = True
        elif slot.reason is not Reason.NONE and not self._interrupted:
            self._interrupted = True
            raise Interrupted(slot.reason)

    def begin_settling(self) -> None:
        """From here on no soft signal interrupts: what is committed must also be told."""
        self._settling = True
        self.desk.board.protect(self._slot, True)

    @contextmanager
    def protected(self) -> Iterator[None]:
        """A part that no soft signal interrupts."""
        self.desk.board.protect(self._slot, True)
        try:
            yield
        finally:
            self.desk.board.protect(self._slot, self._settling)
        if self._pending:
            self._pending = False
            self.checkpoint()

    def commit(self, settlement: Settlement) -> Change:
        """Commit what the session holds together with the settlement, in one transaction.

        Raises:
            Fenced: the attempt has been replaced or its lease has expired; everything is rolled back.
        """
        held = self.attempt_held
        step = timedelta(seconds=self.settings.engine.priority_step_seconds)
        with own_errors():
            if self._session is None:
                return self.desk.ledger.settle(held.tenant, held.run, held.fence, settlement)
            self._session.flush()
            if self._triggered:
                runs.accept(self._session, self._triggered)
            row = (
                self._session.connection()
                .exec_driver_sql(SETTLE, settle_values(held.tenant, held.run, held.fence, settlement, step))
                .one()
            )
            change = settled(held.tenant, held.run, row, alone=False)
            self._session.commit()
        self._after.extend(cast("list[publish.Notice]", db.notices(self._session)))
        return change

    def roll_back(self) -> None:
        """Drop what the session holds, and what it would have triggered."""
        self._triggered.clear()
        if self._session is not None:
            self._session.close()
            self._session = None

    def finish(self) -> list[publish.Notice]:
        """The notices that the committed work left, and the last progress; saves that too."""
        self.roll_back()
        if self._progress is not None and self._progress_saved:
            self._save_progress()
        untold = [] if self._progress is None or self._progress is self._progress_told else [self._progress]
        return [*self._after, *untold]

    def _open(self) -> db.TenantSession:
        held = self.attempt_held
        principal = Principal(held.tenant, ActorKind.RUN, self.run_id, frozenset({"*"}))
        return db.open_session(
            self.desk.engine,
            principal,
            application=f"{held.run}/{held.fence}",
            idle_seconds=held.definition.hard_seconds + self._extended,
        )

    def _flush(self) -> None:
        if self._after:
            self.desk.send(self._after)
            self._after = []

    def _save_progress(self) -> None:
        progress = self._progress
        assert progress is not None
        try:
            self.desk.ledger.call(
                "SELECT save_progress(%s, %s, %s, %s, %s, %s)",
                progress.tenant,
                progress.run,
                self.attempt_held.fence,
                progress.current,
                progress.total,
                progress.message,
            )
        except psycopg2.OperationalError:
            self.log.warning("progress_not_saved")
