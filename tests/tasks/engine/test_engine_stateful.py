"""Whatever dispatchers, workers, callers and crashes do to runs, in any order: the engine's ledger stays right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, TypeVar, cast
from uuid import UUID

import psycopg2
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tasks.engine import effects, runs
from tasks.engine.effects import NotDone
from tasks.engine.ledger import SETTLE, Settlement, settle_values, settled, translated
from tasks.engine.models import RunStep
from tasks.engine.outcomes import Cancel, Fenced
from tasks.engine.runs import TriggerRequest
from tasks.engine.states import MOVES, TERMINAL, RunState
from tasks.families.diagnostics import service
from tenants import db
from tenants.context import Principal
from tenants.errors import Conflict, InvalidState
from tests.support.hands import Hands
from tests.support.tiers import Tier

S = RunState
SETTLEMENTS = st.sampled_from(
    [
        Settlement(S.SCHEDULED, delay_seconds=0.0),
        Settlement(S.SCHEDULED, delay_seconds=3600.0),
        Settlement(S.SCHEDULED, give_back=True),
        Settlement(S.WAITING, event="paid"),
        Settlement(S.SUCCEEDED, result="done"),
        Settlement(S.FAILED, error={"type": "X", "message": "no", "retryable": False}),
        Settlement(S.TIMED_OUT, error={"type": "T", "message": "long", "retryable": False}),
        Settlement(S.CANCELLED),
    ]
)
_RUNS = """
SELECT r.id, r.state, r.fence, r.sequence, r.attempt, r.crashes, r.finished_at, r.cancel_requested_at IS NOT NULL,
       r.fingerprint IS NOT NULL,
       l.fence, l.expires_at > clock_timestamp(),
       e.states, e.sequences,
       (SELECT coalesce(array_agg(m.value ORDER BY m.value), '{}') FROM diagnostics_marks m WHERE m.run_id = r.id),
       (SELECT coalesce(array_agg(s.step ORDER BY s.step), '{}') FROM run_steps s WHERE s.run_id = r.id)
FROM runs r
LEFT JOIN run_leases l ON l.tenant_id = r.tenant_id AND l.run_id = r.id
LEFT JOIN (
  SELECT run_id, array_agg(state ORDER BY sequence) AS states, array_agg(sequence ORDER BY sequence) AS sequences
  FROM run_events WHERE tenant_id = %s GROUP BY run_id
) e ON e.run_id = r.id
WHERE r.tenant_id = %s
"""


@dataclass(frozen=True)
class Row:
    """A run and its lease as they stand."""

    run: UUID
    state: str
    fence: int
    sequence: int
    attempt: int
    crashes: int
    finished_at: datetime | None
    cancel_requested: bool
    dead_letter: bool
    lease_fence: int | None
    lease_holds: bool | None
    states: list[str]
    sequences: list[int]
    marks: list[str]
    steps: list[str]

    def held_under(self, fence: int) -> bool:
        """Whether an attempt with this fence may still commit."""
        return self.state == S.RUNNING and self.fence == fence and bool(self.lease_holds)


@dataclass
class Seen:
    """What was known of a run when it was last looked at."""

    fence: int = 0
    sequence: int = 0
    claims: int = 0
    given_back: int = 0
    succeeded: int = 0
    states: list[str] = field(default_factory=list)
    marks: set[str] = field(default_factory=set)
    """What attempts of it have committed."""
    done_outside: int = 0
    """How often its effect has happened."""


@dataclass(frozen=True)
class Message:
    """A release as it may reach a worker: once, often, late or never."""

    run: UUID
    fence: int


OUTSIDE = st.sampled_from(["answers", "refuses", "dies", "takes too long"])
SELDOM = st.sampled_from([False, False, False, True])
PLACES = st.sampled_from([0, 0, 1, 2, 3])
T = TypeVar("T")


def _latest(known: list[T], place: int) -> T:
    """One of the latest, the last one first; older ones are what comes late or twice."""
    return known[-1 - place % len(known)]


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise translated(cast("psycopg2.Error", error.orig)) from error


class Engine(RuleBasedStateMachine):
    """Two runs, and another whenever one has ended: each step lets one go its way or comes across it. What every call
    answers is compared with how the run stood before."""

    hands: Hands
    tenant: Principal

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[UUID, Seen] = {}
        self.messages: list[Message] = []
        self.keys: dict[str, tuple[UUID, int]] = {}
        self.engine = db.sync_engine(self.hands.installation.addresses.app, pool_size=1)

    def teardown(self) -> None:
        for table in (
            "run_leases",
            "run_events",
            "run_steps",
            "effects",
            "diagnostics_marks",
            "idempotency_keys",
            "runs",
        ):
            self.hands.owner.call(f"DELETE FROM {table}")
        self.engine.dispose()

    @initialize()
    def begin(self) -> None:
        self._accept(delayed=False)
        self._accept(delayed=True)

    @rule(place=PLACES, settlement=SETTLEMENTS, steps=st.integers(1, 4))
    def goes_its_way(self, place: int, settlement: Settlement, steps: int) -> None:
        """What usually comes next, some steps of it."""
        run = _latest(list(self.seen), place)
        for _ in range(steps):
            self._proceed(run, settlement)

    @rule(
        place=PLACES,
        standing=st.sampled_from([S.RUNNING, S.RELEASED, S.QUEUED]),
        settlement=SETTLEMENTS,
        choice=st.integers(0, 11),
        again=st.booleans(),
        late=st.booleans(),
    )
    def is_come_across(
        self, place: int, standing: RunState, settlement: Settlement, choice: int, again: bool, late: bool
    ) -> None:
        """What may happen to a run, once it stands there, with the latest message or with an older one."""
        run = self._going(place)
        self._come_to(run, standing)
        if again and self._row(run).state == S.RELEASED:
            self._sweep()
            self._come_to(run, standing)
        message = self._message(run, late)
        accidents: list[Callable[[], None]] = [
            lambda: self._claim(message),
            lambda: self._take_back(message),
            lambda: self._cancel(run),
        ]
        match self._row(run).state:
            case S.RELEASED:
                accidents += [self._sweep]
            case S.RUNNING:
                accidents += [lambda: self._lose(run)]
            case _:
                accidents += [lambda: self._settle(message, settlement), lambda: self._crash(message), self._rescue]
        accidents[choice % len(accidents)]()

    @rule(key=st.sampled_from(["a", "b"]), value=st.integers(1, 2))
    def is_accepted_under_a_key(self, key: str, value: int) -> None:
        """The same key and arguments: the same run. Other arguments: none."""
        request = TriggerRequest("diagnostics.echo", {"value": value}, idempotency_key=key)
        first, with_value = self.keys.get(key, (None, value))
        if with_value != value:
            with pytest.raises(Conflict):
                self._within(runs.trigger, request)
            return
        accepted = self._within(runs.trigger, request)
        assert (accepted.replayed, accepted.run.id) == (first is not None, first or accepted.run.id)
        self.seen.setdefault(accepted.run.id, Seen())
        self.keys[key] = (accepted.run.id, value)

    @rule(
        place=PLACES,
        before=st.sampled_from([(), (), (S.SCHEDULED,), (S.SUCCEEDED,), (S.SCHEDULED, S.SUCCEEDED)]),
        settlement=SETTLEMENTS,
        late=st.booleans(),
        expired=SELDOM,
        acts=st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True),
        outside=OUTSIDE,
    )
    def an_attempt_acts(
        self,
        place: int,
        before: tuple[RunState, ...],
        settlement: Settlement,
        late: bool,
        expired: bool,
        acts: list[int],
        outside: str,
    ) -> None:
        """It may be the second one, or the first beside a second; it may have lost its lease, or have ended before."""
        run = self._going(place)
        self._come_to(run, S.RUNNING)
        for state in before:
            self._effect(self._message(run), outside)
            self._settle(self._message(run), Settlement(state))
            self._come_to(run, S.RUNNING)
        held = self._message(run, late)
        if expired:
            self.hands.expire(run)
        for act in acts:
            (
                lambda: self._settle(held, Settlement(S.SUCCEEDED)),
                lambda: self._settle(held, settlement),
                lambda: self._settle_with_work(held, Settlement(S.SUCCEEDED)),
                lambda: self._step(held, "step"),
                lambda: self._effect(held, outside),
                lambda: self._extend(held),
                lambda: self._renew(held),
                lambda: self._crash(held),
            )[act]()

    def _going(self, place: int) -> UUID:
        """One of the latest that have not ended; a new one where all have."""
        ended = {row.run for row in self._rows() if row.state in TERMINAL}
        if ended == self.seen.keys():
            self._accept(delayed=False)
        return _latest([run for run in self.seen if run not in ended], place)

    def _come_to(self, run: UUID, standing: RunState) -> None:
        """Let the run go its way until it stands there, or has ended."""
        for _ in range(len(RunState)):
            if self._row(run).state in {standing, *TERMINAL}:
                break
            self._proceed(run, Settlement(S.SUCCEEDED))

    def _message(self, run: UUID, late: bool = False) -> Message:
        """The latest message for the run, or an older one; one that there never was where there was none."""
        return _latest(self.messages_of(run) or [Message(run, 0)], int(late))

    def _proceed(self, run: UUID, settlement: Settlement) -> None:
        match self._row(run).state:
            case S.SCHEDULED:
                self._become_due(run)
            case S.QUEUED:
                self._release(run)
            case S.RELEASED:
                self._claim(self.messages_of(run)[-1])
            case S.RUNNING if self._row(run).lease_holds:
                self._settle(self.messages_of(run)[-1], settlement)
            case S.RUNNING:
                self._rescue()
            case S.WAITING:
                self._deliver()
            case _:
                self._accept(delayed=False)

    def messages_of(self, run: UUID) -> list[Message]:
        """Every message there has been for the run, the latest last."""
        return [message for message in self.messages if message.run == run]

    def _accept(self, *, delayed: bool) -> None:
        request = TriggerRequest("diagnostics.echo", {}, delay_seconds=3600 if delayed else None)
        run = self._within(runs.trigger, request).run
        assert run.state == (S.SCHEDULED if delayed else S.QUEUED)
        self.seen[run.id] = Seen()

    def _release(self, run: UUID) -> None:
        before = self._row(run)
        released = self.hands.release(self.tenant, run)
        assert (run in released) == (before.state == S.QUEUED)
        self.messages += [Message(run, fence) for run, fence in released.items()]

    def _take_back(self, message: Message) -> None:
        before = self._row(message.run)
        taken = self.hands.take_back(self.tenant, message.run, message.fence)
        assert taken == (before.state == S.RELEASED and before.fence == message.fence)

    def _claim(self, message: Message) -> None:
        before = self._row(message.run)
        claims = [self.hands.claim(self.tenant, message.run, message.fence) for _ in range(2)]
        good = before.state == S.RELEASED and before.fence == message.fence
        assert [claim is not None for claim in claims] == [good, False]
        self.seen[message.run].claims += good

    def _renew(self, held: Message) -> None:
        before = self._row(held.run)
        verdict, stop, _ = self.hands.renew(held.run, held.fence)
        assert (verdict == "renewed") == before.held_under(held.fence)
        assert (stop == "cancelled") == (verdict == "renewed" and before.cancel_requested)

    def _settle(self, held: Message, settlement: Settlement) -> None:
        before = self._row(held.run)
        try:
            change = self.hands.settle(self.tenant, held.run, held.fence, settlement)
        except Fenced:
            assert not before.held_under(held.fence)
            assert self._row(held.run) == before
            return
        assert before.fence == held.fence
        if before.state == S.RUNNING:
            assert before.lease_holds
            self._count_settled(before, settlement)
            assert change.state == self._row(held.run).state
        else:
            assert change.state == before.state
            assert self._row(held.run) == before

    def _count_settled(self, before: Row, settlement: Settlement) -> None:
        gives_way = before.cancel_requested and settlement.state is not S.SUCCEEDED
        assert self._row(before.run).state == (S.CANCELLED if gives_way else settlement.state)
        self.seen[before.run].given_back += settlement.give_back
        self.seen[before.run].succeeded += settlement.state is S.SUCCEEDED

    def _settle_with_work(self, held: Message, settlement: Settlement) -> None:
        """What the attempt's session holds is committed with the settlement or not at all, and never on a replay."""
        before = self._row(held.run)
        step = timedelta(seconds=self.hands.engine.priority_step_seconds)
        values = settle_values(self.tenant.tenant, held.run, held.fence, settlement, step)
        with db.open_session(self.engine, self.tenant) as session:
            service.mark(session, "k", "settled", held.run, before.attempt)
            try:
                with _own_errors():
                    row = session.connection().exec_driver_sql(SETTLE, values).one()
                settled(self.tenant.tenant, held.run, row, alone=False)
            except Fenced:
                assert not before.held_under(held.fence)
                return
            session.commit()
        assert before.held_under(held.fence)
        self.seen[held.run].marks.add("settled")
        self._count_settled(before, settlement)

    def _step(self, held: Message, name: str) -> None:
        """As an attempt does it: skipped where it is done, else its mark and its work in one commit, lease last."""
        before = self._row(held.run)
        if name in before.steps:
            return
        with db.open_session(self.engine, self.tenant) as session:
            service.mark(session, "k", name, held.run, before.attempt)
            session.add(RunStep(tenant_id=self.tenant.tenant, run_id=held.run, step=name, value=1, fence=held.fence))
            session.flush()
            try:
                with _own_errors():
                    session.execute(text("SELECT hold_lease(:run, :fence)"), {"run": held.run, "fence": held.fence})
            except Fenced:
                assert not before.held_under(held.fence)
                return
            session.commit()
        assert before.held_under(held.fence)
        self.seen[held.run].marks.add(name)

    def _effect(self, held: Message, outside: str) -> None:
        """The provider answers, refuses before anything happens, or the attempt dies or is replaced meanwhile."""
        seen = self.seen[held.run]

        before, done = self._row(held.run), seen.done_outside

        def call(idempotency_key: str) -> str:
            assert seen.done_outside == 0
            assert not before.cancel_requested
            if outside == "refuses":
                raise NotDone from OSError()
            seen.done_outside += 1
            if outside == "dies":
                raise KeyboardInterrupt
            if outside == "takes too long":
                self.hands.expire(held.run)
            return "answer"

        door = effects.Door(self.hands.app, self.tenant.tenant, held.run, held.fence, held.run)
        try:
            assert effects.once(door, "mail", call) == "answer"
        except Fenced:
            assert not self._row(held.run).held_under(held.fence)
        except Cancel:
            assert before.cancel_requested
            assert seen.done_outside == done
        except (effects.Unconfirmed, KeyboardInterrupt, OSError):
            assert before.held_under(held.fence)
        else:
            assert self._row(held.run).held_under(held.fence)
            assert seen.done_outside == 1

    def _extend(self, held: Message) -> None:
        before = self._row(held.run)
        by = timedelta(seconds=60)
        try:
            self.hands.app.call("SELECT extend_run(%s, %s, %s, %s)", self.tenant.tenant, held.run, held.fence, by)
        except Fenced:
            assert not before.held_under(held.fence)
        else:
            assert before.held_under(held.fence)

    def _crash(self, held: Message) -> None:
        before = self._row(held.run)
        change = self.hands.app.report_crash(self.tenant.tenant, held.run, held.fence, "died")
        assert (change is not None) == (before.state == S.RUNNING and before.fence == held.fence)
        if change is not None:
            self._check_crash(before, change.state)

    def _lose(self, run: UUID) -> None:
        self.hands.expire(run)
        self._rescue()

    def _rescue(self) -> None:
        before = {row.run: row for row in self._rows()}
        rescued = {change.run: change.state for change in self.hands.rescue()}
        assert set(rescued) == {run for run, row in before.items() if row.lease_holds is False}
        for run, state in rescued.items():
            self._check_crash(before[run], state)

    def _become_due(self, run: UUID) -> None:
        self.hands.due(run)
        before = self._row(run)
        moved = {change.run for change in self.hands.requeue(unclaimed_seconds=3600)}
        assert (run in moved) == (before.state == S.SCHEDULED)

    def _sweep(self) -> None:
        released = {row.run for row in self._rows() if row.state == S.RELEASED}
        moved = {change.run for change in self.hands.requeue(unclaimed_seconds=0)}
        assert released <= moved

    def _cancel(self, run: UUID) -> None:
        before = self._row(run)
        if before.state in TERMINAL:
            with pytest.raises(InvalidState):
                self._within(runs.cancel, run)
            assert self._row(run) == before
        else:
            self._within(runs.cancel, run)
            after = self._row(run)
            assert after.cancel_requested
            assert after.state == (S.RUNNING if before.state == S.RUNNING else S.CANCELLED)

    def _deliver(self) -> None:
        waiting = {row.run for row in self._rows() if row.state == S.WAITING}
        assert self._within(runs.deliver, "paid") == len(waiting)
        assert {row.state for row in self._rows() if row.run in waiting} <= {S.QUEUED}

    @invariant()
    def the_ledger_is_right(self) -> None:
        for row in self._rows():
            seen = self.seen[row.run]
            assert row.sequences == list(range(1, row.sequence + 1))
            assert row.states[: len(seen.states)] == seen.states
            assert row.states[0] in {S.SCHEDULED, S.QUEUED}
            assert all(S(after) in MOVES[S(before)] for before, after in pairwise(row.states))
            assert row.states[-1] == row.state
            assert sum(state in TERMINAL for state in row.states) == (row.state in TERMINAL)
            assert (row.finished_at is not None) == (row.state in TERMINAL)
            assert row.dead_letter == (row.state in {S.FAILED, S.TIMED_OUT})
            assert (row.lease_fence is not None) == (row.state == S.RUNNING)
            assert row.lease_fence in {None, row.fence}
            assert row.fence >= seen.fence
            assert row.states.count(S.RUNNING) == seen.claims
            assert row.attempt == seen.claims - seen.given_back
            assert row.states.count(S.SUCCEEDED) == seen.succeeded <= 1
            assert row.crashes <= self.hands.engine.max_crashes
            assert sorted(row.marks) == sorted(seen.marks)
            assert set(row.steps) == seen.marks - {"settled"}
            seen.fence, seen.states = row.fence, row.states

    def _check_crash(self, before: Row, state: str) -> None:
        most = self.hands.engine.max_crashes
        dead = before.crashes + 1 >= most
        assert state == (S.CANCELLED if before.cancel_requested else S.FAILED if dead else S.SCHEDULED)
        assert self._row(before.run).fence == before.fence + 1

    def _within(self, service: Any, *args: Any) -> Any:
        with db.open_session(self.engine, self.tenant) as session:
            result = service(session, *args)
            session.commit()
            return result

    def _rows(self) -> list[Row]:
        return [Row(*row) for row in self.hands.owner.call(_RUNS, self.tenant.tenant, self.tenant.tenant)]

    def _row(self, run: UUID) -> Row:
        [row] = [row for row in self._rows() if row.run == run]
        return row


@pytest.mark.timeout(1800)
def test_the_ledger_stays_right_whatever_happens_in_whatever_order(hands: Hands, tenant: Principal, tier: Tier) -> None:
    machine = type("Machine", (Engine,), {"hands": hands, "tenant": tenant})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=tier(100, 1000),
            stateful_step_count=tier(12, 30),
            derandomize=tier(True, False),
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
