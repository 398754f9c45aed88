"""Actions on many runs: every run that matched gets one verdict, whatever happens between and during the portions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from uuid import RFC_4122, UUID

import orjson
import psycopg2
import pytest
from psycopg2 import extensions

from tasks.engine import bulk_actions, dead_letters, limits, runs, switches
from tasks.engine.admission import LimitKind
from tasks.engine.bulk_actions import ActionKind
from tasks.engine.filters import RunFilter
from tasks.engine.ledger import SETTLE, SHARD, Change, NotLeading, Settlement, changes, settle_values
from tasks.engine.models import BulkAction
from tasks.engine.states import TERMINAL, RunState
from tenants import ids
from tenants.context import ActorKind, Principal
from tenants.errors import Forbidden, NotFound, QuotaExceeded
from tests.support.hands import Hands
from tests.support.installations import Installation

S = RunState
STEP = timedelta(seconds=60)
ADVANCE = "SELECT * FROM advance_bulk_action(%s, %s, %s, %s, %s)"
BYTES = 1_000_000
BOOM = {"type": "Boom", "message": "no", "retryable": True}


class Desk:
    """Begins actions in a tenant, and carries them out by hand."""

    def __init__(self, installation: Installation, hands: Hands, tenant: Principal) -> None:
        self.installation = installation
        self.hands = hands
        self.tenant = tenant

    def begin(self, kind: ActionKind, wanted: RunFilter | None = None) -> BulkAction:
        return self.installation.write(self.tenant, bulk_actions.begin, kind, wanted or RunFilter())

    def count(self, kind: ActionKind, wanted: RunFilter | None = None) -> int:
        return self.installation.write(self.tenant, bulk_actions.count, kind, wanted or RunFilter())

    def advance(self, portion: int = 500, portion_bytes: int = BYTES) -> list[Change]:
        return changes(self.hands.system.call(ADVANCE, SHARD, self.hands.epoch, portion, portion_bytes, STEP))

    def look(self, action: BulkAction) -> tuple[int, int, int, bool]:
        """Total, done, failed, and whether it is finished."""
        row = self.installation.write(self.tenant, bulk_actions.get, action.id)
        return row.total, row.done, row.failed, row.finished_at is not None

    def finish(self, action: BulkAction, portion: int = 500) -> tuple[int, int, int]:
        """Carry it out to its end: total, done, failed."""
        for _ in range(200):
            if self.look(action)[3]:
                return self.look(action)[:3]
            self.advance(portion)
        raise AssertionError(self.look(action))

    def die(self, number: int, state: RunState = S.FAILED) -> list[UUID]:
        """Dead letters of one group."""
        made = [self.hands.running(self.tenant) for _ in range(number)]
        for run, fence in made:
            self.hands.settle(self.tenant, run, fence, Settlement(state, error=BOOM))
        return [run for run, _ in made]

    def in_state(self, state: RunState) -> UUID:
        """A run that stands there."""
        trigger = self.installation.trigger
        if state is S.SCHEDULED:
            return trigger(self.tenant, "diagnostics.echo", delay_seconds=3600)
        if state in {S.QUEUED, S.RELEASED}:
            run = trigger(self.tenant, "diagnostics.echo")
            if state is S.RELEASED:
                self.hands.release(self.tenant, run)
            return run
        run, fence = self.hands.running(self.tenant)
        if state is not S.RUNNING:
            self.hands.settle(self.tenant, run, fence, Settlement(state, event="paid"))
        return run

    def retries(self, run: UUID) -> list[UUID]:
        """The runs that repeat it."""
        return [found for (found,) in self.installation.rows("SELECT id FROM runs WHERE origin_id = %s", str(run))]

    @contextmanager
    def session(self, *, system: bool = False) -> Iterator[extensions.connection]:
        """A transaction that is open until the block ends."""
        addresses = self.installation.addresses
        with closing(psycopg2.connect(addresses.system if system else addresses.app)) as connection:
            yield connection


@pytest.fixture
def desk(installation: Installation, hands: Hands, tenant: Principal) -> Iterator[Desk]:
    yield Desk(installation, hands, tenant)
    installation.rows("DELETE FROM bulk_actions")


def test_a_dry_run_counts_and_does_nothing(desk: Desk) -> None:
    waiting = desk.in_state(S.QUEUED)
    [letter] = desk.die(1)
    assert (desk.count(ActionKind.CANCEL), desk.count(ActionKind.RETRY)) == (1, 1)
    assert desk.advance() == []
    assert desk.installation.states(waiting) == ["QUEUED"]
    assert desk.retries(letter) == []
    assert desk.installation.rows("SELECT * FROM bulk_actions") == []


def test_a_cancel_ends_what_waits_and_tells_what_runs(desk: Desk) -> None:
    before = {state: desk.in_state(state) for state in S}
    fence = desk.installation.run(desk.tenant, before[S.RUNNING]).fence
    histories = {state: desk.installation.history(run) for state, run in before.items()}
    action = desk.begin(ActionKind.CANCEL)
    told = desk.advance()
    waiting = {S.SCHEDULED, S.QUEUED, S.RELEASED, S.WAITING}
    assert desk.look(action) == (5, 5, 0, True)
    assert {change.run for change in told} == {before[state] for state in waiting}
    for state, run in before.items():
        row = desk.installation.run(desk.tenant, run)
        history = desk.installation.history(run)
        if state in waiting:
            assert (row.state, history[:-1], history[-1][1]) == ("CANCELLED", histories[state], "CANCELLED")
            assert row.finished_at is not None
            assert row.cancel_requested_at is not None
        else:
            assert (row.state, history) == (state, histories[state])
        if state in TERMINAL:
            assert row.cancel_requested_at is None
    assert desk.hands.renew(before[S.RUNNING], fence)[1]
    ended = desk.hands.settle(desk.tenant, before[S.RUNNING], fence, Settlement(S.FAILED, error=BOOM))
    assert ended.state == "CANCELLED"
    released = desk.installation.run(desk.tenant, before[S.RELEASED])
    assert desk.hands.claim(desk.tenant, released.id, released.fence) is None


def test_a_retry_is_the_same_run_again_in_the_name_of_who_asked(desk: Desk) -> None:
    letter = desk.installation.trigger(
        desk.tenant, "diagnostics.echo", {"value": [1, {"a": None}]}, priority=8, concurrency_key="k",
        queue="maintenance", idempotency_key="once",
    )  # fmt: skip
    fence = desk.hands.release(desk.tenant, letter)[letter]
    desk.hands.claim(desk.tenant, letter, fence)
    desk.hands.settle(desk.tenant, letter, fence, Settlement(S.FAILED, error=BOOM))
    desk.installation.rows("UPDATE runs SET max_attempts = 9 WHERE id = %s", str(letter))
    asking = Principal(desk.tenant.tenant, ActorKind.USER, "usr_somebody", frozenset({"*"}))
    action = desk.installation.write(asking, bulk_actions.begin, ActionKind.RETRY, RunFilter())
    [change] = desk.advance()
    first, again = (desk.installation.run(desk.tenant, run) for run in (letter, change.run))
    assert (desk.look(action), first.retried_by) == ((1, 1, 0, True), again.id)
    for column in ("task", "queue", "args", "priority", "concurrency_key", "max_attempts"):
        assert getattr(again, column) == getattr(first, column), column
    assert (again.actor_kind, again.actor, again.origin_id) == ("USER", "usr_somebody", letter)
    assert (again.idempotency_key, again.attempt, again.crashes, again.error, again.fingerprint) == (
        None,
        0,
        0,
        None,
        None,
    )
    assert again.available_at - again.rank == timedelta(seconds=8 * 60)
    assert desk.installation.history(again.id) == [(1, "QUEUED", 0)]
    assert (change.state, change.sequence, change.attempt, change.queue) == ("QUEUED", 1, 0, "maintenance")
    # What it repeats in turn names the first of all: they share their effects.
    fence = desk.hands.release(desk.tenant, again.id)[again.id]
    claim = desk.hands.claim(desk.tenant, again.id, fence)
    assert claim is not None
    assert claim.effects_of == letter
    desk.hands.settle(desk.tenant, again.id, fence, Settlement(S.TIMED_OUT, error=BOOM))
    desk.finish(desk.begin(ActionKind.RETRY))
    [third] = set(desk.retries(letter)) - {again.id}
    assert desk.installation.run(desk.tenant, again.id).retried_by == third


def test_a_new_id_is_as_python_makes_them(desk: Desk) -> None:
    python, [(made,)] = ids.new(), desk.installation.rows("SELECT new_id()")
    assert (made.version, made.variant) == (python.version, python.variant) == (7, RFC_4122)
    assert abs((made.int >> 80) - (python.int >> 80)) < 10_000  # Milliseconds.


def test_a_retry_means_dead_letters_unless_states_are_named(desk: Desk) -> None:
    made = {state: desk.in_state(state) for state in S}
    assert desk.count(ActionKind.RETRY) == 2
    assert desk.count(ActionKind.RETRY, RunFilter(states=list(S))) == 4
    assert desk.count(ActionKind.RETRY, RunFilter(states=[S.QUEUED])) == 0
    assert desk.count(ActionKind.CANCEL, RunFilter(states=[S.FAILED, S.WAITING])) == 1
    assert desk.finish(desk.begin(ActionKind.RETRY, RunFilter(states=[S.SUCCEEDED, S.RUNNING]))) == (1, 1, 0)
    assert len(desk.retries(made[S.SUCCEEDED])) == 1
    assert all(not desk.retries(run) for state, run in made.items() if state is not S.SUCCEEDED)


def test_every_condition_of_a_filter_holds(desk: Desk) -> None:
    keyed = desk.installation.trigger(desk.tenant, "diagnostics.echo", concurrency_key="k")
    other = desk.installation.trigger(desk.tenant, "diagnostics.sleep", {"seconds": 0})
    assert desk.finish(desk.begin(ActionKind.CANCEL, RunFilter(ids=[ids.new()]))) == (0, 0, 0)
    assert desk.finish(desk.begin(ActionKind.CANCEL, RunFilter(task_name="diagnostics.sleep", ids=[keyed]))) == (
        0,
        0,
        0,
    )
    assert desk.finish(desk.begin(ActionKind.CANCEL, RunFilter(concurrency_key="k"))) == (1, 1, 0)
    assert [desk.installation.states(run)[-1] for run in (keyed, other)] == ["CANCELLED", "QUEUED"]


def test_what_comes_after_an_action_was_begun_is_none_of_its_runs(desk: Desk) -> None:
    desk.in_state(S.QUEUED)
    action = desk.begin(ActionKind.CANCEL)
    late = desk.in_state(S.QUEUED)
    assert desk.finish(action) == (1, 1, 0)
    assert desk.installation.states(late) == ["QUEUED"]


def test_a_run_that_was_retried_is_not_retried_again(desk: Desk) -> None:
    letters = desk.die(3)
    desk.installation.write(desk.tenant, runs.retry, letters[0])
    assert desk.count(ActionKind.RETRY) == 2
    first, second = desk.begin(ActionKind.RETRY), desk.begin(ActionKind.RETRY)
    assert (desk.finish(first), desk.finish(second)) == ((2, 2, 0), (2, 0, 2))
    assert [len(desk.retries(letter)) for letter in letters] == [1, 1, 1]
    assert desk.finish(desk.begin(ActionKind.RETRY)) == (0, 0, 0)


def test_what_may_not_be_retried_is_counted_as_failed(desk: Desk) -> None:
    letters = desk.die(3)
    action = desk.begin(ActionKind.RETRY)
    desk.installation.rows("DELETE FROM runs WHERE id = %s", str(letters[0]))
    desk.advance(portion=1)
    desk.installation.rows("DELETE FROM tenant_families WHERE tenant_id = %s", str(desk.tenant.tenant))
    desk.advance(portion=1)
    desk.installation.rows(
        "INSERT INTO tenant_families (tenant_id, family) VALUES (%s, 'diagnostics')", str(desk.tenant.tenant)
    )
    desk.installation.rows("UPDATE tenants SET suspended_at = now() WHERE id = %s", str(desk.tenant.tenant))
    desk.advance(portion=1)
    desk.installation.rows("UPDATE tenants SET suspended_at = NULL WHERE id = %s", str(desk.tenant.tenant))
    assert desk.look(action) == (3, 0, 3, True)
    assert [desk.retries(letter) for letter in letters] == [[], [], []]


@pytest.mark.parametrize("task", [None, "diagnostics.echo"])
def test_what_is_drained_accepts_no_retry_and_ends_by_a_cancel(desk: Desk, task: str | None) -> None:
    [letter] = desk.die(1)
    waiting = desk.in_state(S.QUEUED)
    desk.installation.write(desk.tenant, switches.pause, task, draining=True)
    assert desk.finish(desk.begin(ActionKind.RETRY)) == (1, 0, 1)
    assert desk.retries(letter) == []
    assert desk.finish(desk.begin(ActionKind.CANCEL, RunFilter(ids=[waiting]))) == (1, 1, 0)
    desk.installation.write(desk.tenant, switches.resume, task)
    desk.installation.write(desk.tenant, switches.pause, task)
    assert desk.finish(desk.begin(ActionKind.RETRY)) == (1, 1, 0)


def test_a_retry_is_refused_where_more_would_wait_than_a_limit_allows(desk: Desk) -> None:
    letters = desk.die(6)
    narrow = limits.LimitRequest("narrow", LimitKind.BACKLOG, 5, queue="diagnostics")
    desk.installation.write(desk.tenant, limits.put, narrow)
    desk.installation.write(desk.tenant, limits.put, limits.LimitRequest("wide", LimitKind.BACKLOG, 100))
    key = limits.LimitRequest("key", LimitKind.BACKLOG, 1, concurrency_key="k")
    desk.installation.write(desk.tenant, limits.put, key)
    with pytest.raises(QuotaExceeded) as refused:
        desk.begin(ActionKind.RETRY)
    assert (refused.value.limit_name, refused.value.limit, refused.value.used) == ("narrow", 5, 0)
    assert desk.installation.rows("SELECT 1 FROM bulk_actions WHERE tenant_id = %s", str(desk.tenant.tenant)) == []
    desk.installation.write(desk.tenant, limits.put, replace(narrow, amount=6))
    assert desk.finish(desk.begin(ActionKind.RETRY)) == (6, 6, 0)
    assert [len(desk.retries(letter)) for letter in letters] == [1] * 6


def test_an_action_that_can_not_go_on_holds_up_no_other(
    desk: Desk, other_tenant: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_actions, "_SECONDS", 30.0)
    [letter] = desk.die(1)
    theirs = Desk(desk.installation, desk.hands, other_tenant)
    theirs.die(2)
    stuck = [desk.begin(ActionKind.RETRY) for _ in range(5)]
    action = theirs.begin(ActionKind.RETRY)
    with desk.session() as holding, holding.cursor() as cursor:
        cursor.execute("SELECT set_config('app.tenant_id', %s, true)", (str(desk.tenant.tenant),))
        cursor.execute("SELECT 1 FROM runs WHERE id = %s FOR UPDATE", (str(letter),))
        bulk_actions.advance(desk.hands.system, desk.hands.epoch, STEP)
        assert theirs.look(action) == (2, 2, 0, True)
        assert not any(desk.look(one)[3] for one in stuck)
    for one in stuck:
        desk.finish(one)
    assert len(desk.retries(letter)) == 1


def test_a_task_that_is_no_more_is_left_out_of_a_retry(desk: Desk) -> None:
    [letter] = desk.die(1)
    desk.installation.rows("UPDATE runs SET task = 'diagnostics.of_another_version' WHERE id = %s", str(letter))
    assert desk.count(ActionKind.RETRY) == 0


def test_a_run_that_ended_in_the_meantime_is_counted_as_failed(desk: Desk) -> None:
    run, fence = desk.hands.running(desk.tenant)
    action = desk.begin(ActionKind.CANCEL)
    desk.hands.settle(desk.tenant, run, fence, Settlement(S.SUCCEEDED))
    assert desk.finish(action) == (1, 0, 1)
    assert desk.installation.run(desk.tenant, run).state == "SUCCEEDED"


def test_a_run_that_ends_while_its_cancel_is_carried_out_is_asked_again_and_nobody_waits(desk: Desk) -> None:
    others = [desk.in_state(S.QUEUED) for _ in range(3)]
    run, fence = desk.hands.running(desk.tenant)
    action = desk.begin(ActionKind.CANCEL)
    with desk.session() as ending, ending.cursor() as cursor:
        cursor.execute("SELECT set_config('app.tenant_id', %s, true)", (str(desk.tenant.tenant),))
        cursor.execute(SETTLE, settle_values(desk.tenant.tenant, run, fence, Settlement(S.SUCCEEDED), STEP))
        assert {change.run for change in desk.advance()} == set(others)
        assert desk.look(action) == (4, 3, 0, False)
        assert desk.advance() == []
        assert desk.look(action) == (4, 3, 0, False)
        ending.commit()
    assert desk.finish(action) == (4, 3, 1)
    assert desk.installation.states(run)[-1] == "SUCCEEDED"


def test_a_run_whose_step_holds_its_lease_is_told_to_stop_later(desk: Desk) -> None:
    run, fence = desk.hands.running(desk.tenant)
    action = desk.begin(ActionKind.CANCEL)
    with desk.session() as step, step.cursor() as cursor:
        cursor.execute("SELECT set_config('app.tenant_id', %s, true)", (str(desk.tenant.tenant),))
        cursor.execute("SELECT hold_lease(%s, %s)", (run, fence))
        desk.advance()
        assert desk.look(action) == (1, 0, 0, False)
        assert desk.installation.run(desk.tenant, run).cancel_requested_at is None
        step.commit()
    assert desk.finish(action) == (1, 1, 0)
    assert desk.hands.renew(run, fence)[1]


@pytest.mark.parametrize("kind", ActionKind)
def test_a_portion_that_is_not_committed_neither_loses_nor_doubles_anything(desk: Desk, kind: ActionKind) -> None:
    made = desk.die(10) if kind is ActionKind.RETRY else [desk.in_state(S.QUEUED) for _ in range(10)]
    action = desk.begin(kind)
    for committed in (3, 6, 9):
        desk.advance(portion=3)
        with desk.session(system=True) as killed, killed.cursor() as cursor:
            cursor.execute(ADVANCE, (SHARD, desk.hands.epoch, 3, BYTES, STEP))
            assert cursor.rowcount == min(3, 10 - committed)
            killed.close()  # As when its process dies.
        assert desk.look(action) == (10, committed, 0, False)
    assert desk.finish(action, portion=3) == (10, 10, 0)
    for run in made:
        if kind is ActionKind.RETRY:
            assert len(desk.retries(run)) == 1
        else:
            assert desk.installation.states(run) == ["QUEUED", "CANCELLED"]


def test_two_dispatchers_on_one_action_do_each_portion_once(desk: Desk) -> None:
    letters = desk.die(40)
    action = desk.begin(ActionKind.RETRY)
    ready = threading.Barrier(4)

    def work() -> None:
        with desk.session(system=True) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            ready.wait()
            for _ in range(40):
                cursor.execute(ADVANCE, (SHARD, desk.hands.epoch, 1, BYTES, STEP))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert desk.finish(action) == (40, 40, 0)
    assert [len(desk.retries(letter)) for letter in letters] == [1] * 40


def test_two_actions_on_the_same_runs_at_once_retry_each_once(desk: Desk) -> None:
    letters = desk.die(20)
    [group] = desk.installation.write(desk.tenant, dead_letters.page).items
    wanted = RunFilter(dead_letter_group=group.id)
    actions = [desk.begin(ActionKind.RETRY, wanted) for _ in range(2)]
    with desk.session(system=True) as one, desk.session(system=True) as other:
        with one.cursor() as first, other.cursor() as second:
            first.execute(ADVANCE, (SHARD, desk.hands.epoch, 10, BYTES, STEP))
            second.execute(ADVANCE, (SHARD, desk.hands.epoch, 10, BYTES, STEP))
            assert (first.rowcount, second.rowcount) == (10, 0)
        one.commit()
        other.commit()
    found = [desk.finish(action, portion=7) for action in actions]
    assert [total for total, _, _ in found] == [20, 20]
    assert sum(done for _, done, _ in found) == 20
    assert all(done + failed == total for total, done, failed in found)
    assert [len(desk.retries(letter)) for letter in letters] == [1] * 20


def test_a_dispatcher_whose_lead_is_over_carries_nothing_out(desk: Desk) -> None:
    run = desk.in_state(S.QUEUED)
    action = desk.begin(ActionKind.CANCEL)
    with pytest.raises(NotLeading):
        desk.hands.system.call(ADVANCE, SHARD, desk.hands.epoch - 1, 500, BYTES, STEP)
    assert desk.installation.states(run) == ["QUEUED"]
    assert desk.look(action) == (1, 0, 0, False)
    assert desk.finish(action) == (1, 1, 0)


def test_a_huge_action_takes_turns_with_the_others(desk: Desk, other_tenant: Principal) -> None:
    for _ in range(9):
        desk.in_state(S.QUEUED)
    huge = desk.begin(ActionKind.CANCEL)
    theirs = Desk(desk.installation, desk.hands, other_tenant)
    run = theirs.in_state(S.QUEUED)
    small = theirs.begin(ActionKind.CANCEL)
    desk.advance(portion=1)
    assert [change.run for change in desk.advance(portion=1)] == [run]
    assert theirs.look(small) == (1, 1, 0, True)
    assert desk.look(huge) == (9, 1, 0, False)
    assert desk.finish(huge, portion=1) == (9, 9, 0)


def test_a_portion_of_retries_weighs_so_much_and_no_more_but_for_one_that_is_heavier(desk: Desk) -> None:
    sizes = [10, 4000, 10, 10, 10]
    for number, size in enumerate(sizes):
        [run] = desk.die(1)
        noise = "".join(sha256(f"{number} {at}".encode()).hexdigest() for at in range(size // 64 + 1))
        desk.installation.rows(
            "UPDATE runs SET args = %s WHERE id = %s", orjson.dumps({"value": noise}).decode(), str(run)
        )
    action = desk.begin(ActionKind.RETRY)
    portions = []
    while not desk.look(action)[3]:
        portions.append(len(desk.advance(portion=3, portion_bytes=1000)))
    assert portions == [1, 1, 3]


def test_a_tenant_has_no_more_turns_for_having_more_actions(desk: Desk, other_tenant: Principal) -> None:
    for _ in range(8):
        desk.in_state(S.QUEUED)
    many = [desk.begin(ActionKind.CANCEL) for _ in range(4)]
    theirs = Desk(desk.installation, desk.hands, other_tenant)
    for _ in range(4):
        theirs.in_state(S.QUEUED)
    one = theirs.begin(ActionKind.CANCEL)
    for _ in range(7):
        desk.advance(portion=1)
    assert theirs.look(one)[1] >= 3
    theirs.finish(one)
    for action in many:
        desk.finish(action)


def test_a_sweep_gives_actions_so_much_of_its_time_and_no_more(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_actions, "_PORTION", 2)
    monkeypatch.setattr(bulk_actions, "_SECONDS", 0.0)
    for _ in range(5):
        desk.in_state(S.QUEUED)
    action = desk.begin(ActionKind.CANCEL)
    moved = bulk_actions.advance(desk.hands.system, desk.hands.epoch, STEP)
    assert (len(moved), desk.look(action)) == (2, (5, 2, 0, False))
    monkeypatch.setattr(bulk_actions, "_SECONDS", 60.0)
    moved = bulk_actions.advance(desk.hands.system, desk.hands.epoch, STEP)
    assert (len(moved), desk.look(action)) == (3, (5, 5, 0, True))


def test_a_tenant_has_twenty_unfinished_actions_at_most(desk: Desk, other_tenant: Principal) -> None:
    desk.in_state(S.QUEUED)
    made = [desk.begin(ActionKind.CANCEL) for _ in range(20)]
    with pytest.raises(QuotaExceeded) as refused:
        desk.begin(ActionKind.CANCEL)
    assert (refused.value.limit, refused.value.used) == (20, 20)
    assert desk.installation.rows("SELECT count(*) FROM bulk_actions") == [(20,)]
    Desk(desk.installation, desk.hands, other_tenant).begin(ActionKind.CANCEL)
    desk.finish(made[0])
    desk.begin(ActionKind.CANCEL)


def test_a_finished_action_keeps_its_figures_and_who_asked_but_not_its_runs(desk: Desk) -> None:
    desk.in_state(S.QUEUED)
    action = desk.begin(ActionKind.CANCEL)
    desk.finish(action)
    assert desk.installation.rows("SELECT kind, actor_kind, actor, total, pending FROM bulk_actions") == [
        ("CANCEL", "API_KEY", "key_tests", 1, [])
    ]


@pytest.mark.parametrize("kind", ActionKind)
def test_a_narrowed_key_acts_on_its_tasks_only(desk: Desk, kind: ActionKind) -> None:
    def make(task: str) -> UUID:
        run = desk.installation.trigger(desk.tenant, task, {"seconds": 0} if task.endswith("sleep") else {})
        if kind is ActionKind.RETRY:
            fence = desk.hands.release(desk.tenant, run)[run]
            desk.hands.claim(desk.tenant, run, fence, task)
            desk.hands.settle(desk.tenant, run, fence, Settlement(S.FAILED, error=BOOM))
        return run

    own, foreign = make("diagnostics.echo"), make("diagnostics.sleep")
    narrowed = Principal(
        desk.tenant.tenant, ActorKind.API_KEY, "key_narrow", frozenset({"*"}),
        task_names=frozenset({"diagnostics.echo"}),
    )  # fmt: skip
    histories = [desk.installation.history(run) for run in (own, foreign)]
    asking = Desk(desk.installation, desk.hands, narrowed)
    for wanted in (RunFilter(task_name="diagnostics.sleep"), RunFilter(ids=[foreign])):
        assert asking.count(kind, wanted) == 0
    assert asking.finish(asking.begin(kind)) == (1, 1, 0)
    assert desk.installation.history(foreign) == histories[1]
    if kind is ActionKind.RETRY:
        assert (len(desk.retries(own)), desk.retries(foreign)) == (1, [])
        [group] = desk.installation.write(desk.tenant, dead_letters.page).items
        for service in (bulk_actions.count, bulk_actions.begin):
            with pytest.raises(Forbidden):
                desk.installation.write(narrowed, service, kind, RunFilter(dead_letter_group=group.id))
    else:
        assert desk.installation.states(own)[-1] == "CANCELLED"


@pytest.mark.parametrize("kind", ActionKind)
def test_an_action_with_no_condition_is_on_one_tenants_runs_only(
    desk: Desk, other_tenant: Principal, kind: ActionKind
) -> None:
    theirs = Desk(desk.installation, desk.hands, other_tenant)
    for owner in (desk, theirs):
        owner.in_state(S.QUEUED)
        owner.die(1)
    before = desk.installation.rows("SELECT r::text FROM runs r WHERE tenant_id = %s", str(other_tenant.tenant))
    action = desk.begin(kind)
    assert desk.finish(action) == (1, 1, 0)
    after = desk.installation.rows("SELECT r::text FROM runs r WHERE tenant_id = %s", str(other_tenant.tenant))
    assert after == before
    with pytest.raises(NotFound):
        desk.installation.write(other_tenant, bulk_actions.get, action.id)


def test_an_action_that_names_anothers_runs_does_nothing_to_them(desk: Desk, other_tenant: Principal) -> None:
    """Also where it was put into the table past the service that begins it."""
    theirs = Desk(desk.installation, desk.hands, other_tenant)
    waiting, [letter] = theirs.in_state(S.QUEUED), theirs.die(1)
    before = desk.installation.rows("SELECT r::text FROM runs r WHERE tenant_id = %s", str(other_tenant.tenant))
    for kind in ActionKind:
        assert desk.count(kind, RunFilter(ids=[waiting, letter])) == 0
        desk.installation.rows(
            "INSERT INTO bulk_actions (tenant_id, id, kind, actor_kind, actor, pending, total)"
            " VALUES (%s, new_id(), %s, 'USER', 'u', %s::uuid[], 2)",
            str(desk.tenant.tenant), kind.value, [str(waiting), str(letter)],
        )  # fmt: skip
        assert desk.advance() == []
    assert desk.installation.rows("SELECT done, failed FROM bulk_actions") == [(0, 2), (0, 2)]
    after = desk.installation.rows("SELECT r::text FROM runs r WHERE tenant_id = %s", str(other_tenant.tenant))
    assert after == before
    group = desk.installation.write(other_tenant, dead_letters.page).items[0].id
    for unknown in (group, ids.new()):
        with pytest.raises(NotFound):
            desk.begin(ActionKind.RETRY, RunFilter(dead_letter_group=unknown))


def test_a_hundred_thousand_runs_are_cancelled_one_and_all(desk: Desk, new_tenant: Callable[..., Principal]) -> None:
    tenant = new_tenant("diagnostics")
    crowded = Desk(desk.installation, desk.hands, tenant)
    desk.installation.rows(
        "WITH made AS ("
        "  INSERT INTO runs (tenant_id, id, task, queue, args, priority, rank, state, max_attempts, actor_kind, actor,"
        "    available_at)"
        "  SELECT %s, new_id(), 'diagnostics.echo', 'diagnostics', '{}', 5, now(), 'QUEUED', 1, 'USER', 'u', now()"
        "  FROM generate_series(1, 100000) RETURNING tenant_id, id)"
        " INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt) SELECT *, 1, 'QUEUED', 0 FROM made",
        str(tenant.tenant),
    )
    assert crowded.count(ActionKind.CANCEL) == 100_000
    action = crowded.begin(ActionKind.CANCEL)
    assert crowded.finish(action, portion=1000) == (100_000, 100_000, 0)
    assert desk.installation.rows(
        "SELECT state, count(*) FROM run_events WHERE tenant_id = %s GROUP BY state ORDER BY state", str(tenant.tenant)
    ) == [("CANCELLED", 100_000), ("QUEUED", 100_000)]
