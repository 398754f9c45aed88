"""Every legal move of a run is made by some function, with its event; and a run's end is its end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import pairwise

import psycopg2
import pytest

from tasks.engine import documents, limits, runs, switches, waiting
from tasks.engine.admission import LimitKind
from tasks.engine.ledger import SHARD, NotLeading, Settlement
from tasks.engine.limits import LimitRequest
from tasks.engine.outcomes import Fenced
from tasks.engine.states import MOVES, TERMINAL, RunState
from tenants.context import Principal
from tenants.errors import InvalidState
from tests.support.hands import Hands
from tests.support.installations import Installation

S = RunState


def test_the_functions_make_every_legal_move_and_no_other(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    for state in (S.SUCCEEDED, S.FAILED, S.TIMED_OUT, S.CANCELLED):
        hands.settle(tenant, *hands.running(tenant), Settlement(state))
    retried, fence = hands.running(tenant)
    hands.settle(tenant, retried, fence, Settlement(S.SCHEDULED))
    assert {change.run for change in hands.requeue()} == {retried}
    again = hands.release(tenant, retried)[retried]
    assert {change.run for change in hands.requeue(unclaimed_seconds=0)} == {retried}
    installation.write(tenant, runs.cancel, retried)
    assert again > fence
    for _ in range(2):
        waiting, fence = hands.running(tenant)
        hands.settle(tenant, waiting, fence, Settlement(S.WAITING, event="paid"))
    installation.write(tenant, runs.cancel, waiting)
    assert installation.write(tenant, runs.deliver, "paid") == 1
    installation.write(tenant, runs.cancel, installation.trigger(tenant, "diagnostics.echo", delay_seconds=60))
    released = installation.trigger(tenant, "diagnostics.echo")
    hands.release(tenant, released)
    installation.write(tenant, runs.cancel, released)
    made = {
        (RunState(before[1]), RunState(after[1]))
        for (run,) in installation.rows("SELECT id FROM runs WHERE tenant_id = %s", str(tenant.tenant))
        for before, after in pairwise(installation.history(run))
    }
    assert made == {(before, after) for before, moves in MOVES.items() for after in moves}


@pytest.mark.parametrize("end", sorted(TERMINAL))
def test_after_its_end_nothing_moves_a_run(
    installation: Installation, hands: Hands, tenant: Principal, end: RunState
) -> None:
    run, fence = hands.running(tenant)
    hands.settle(tenant, run, fence, Settlement(end))
    history = installation.history(run)
    assert hands.release(tenant, run) == {}
    assert hands.claim(tenant, run, fence) is None
    assert hands.take_back(tenant, run, fence) == 0
    assert hands.app.report_crash(tenant.tenant, run, fence, "late") is None
    assert hands.renew(run, fence)[0] == "gone"
    hands.requeue()
    hands.rescue()
    with pytest.raises(InvalidState):
        installation.write(tenant, runs.cancel, run)
    for other in TERMINAL - {end, S.CANCELLED}:
        if end is not S.CANCELLED:
            with pytest.raises(Fenced):
                hands.settle(tenant, run, fence, Settlement(other))
    assert installation.history(run) == history
    assert installation.run(tenant, run).finished_at is not None


def test_settling_twice_answers_as_the_first_time(installation: Installation, hands: Hands, tenant: Principal) -> None:
    run, fence = hands.running(tenant)
    first = hands.settle(tenant, run, fence, Settlement(S.SUCCEEDED, result=1))
    again = hands.settle(tenant, run, fence, Settlement(S.SUCCEEDED, result=2))
    assert (again.state, again.sequence, again.attempt) == (first.state, first.sequence, first.attempt)
    assert installation.run(tenant, run).result == 1


def test_a_lease_that_has_ended_settles_nothing(installation: Installation, hands: Hands, tenant: Principal) -> None:
    run, fence = hands.running(tenant)
    hands.expire(run)
    with pytest.raises(Fenced, match="lease expired"):
        hands.settle(tenant, run, fence, Settlement(S.SUCCEEDED))
    assert installation.run(tenant, run).state == "RUNNING"
    assert [(change.run, change.state) for change in hands.rescue()] == [(run, "SCHEDULED")]


def test_a_snooze_gives_the_attempt_back_and_its_old_message_is_refused(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    run, fence = hands.running(tenant)
    hands.settle(tenant, run, fence, Settlement(S.SCHEDULED, give_back=True))
    hands.requeue()
    assert installation.run(tenant, run).attempt == 0
    second = hands.release(tenant, run)[run]
    assert hands.claim(tenant, run, fence) is None
    claim = hands.claim(tenant, run, second)
    assert claim is not None
    assert claim.attempt == 1


def test_a_success_stands_though_a_cancel_was_asked_for_and_anything_else_gives_way(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    for asked, ends in ((S.SUCCEEDED, S.SUCCEEDED), (S.SCHEDULED, S.CANCELLED), (S.FAILED, S.CANCELLED)):
        run, fence = hands.running(tenant)
        installation.write(tenant, runs.cancel, run)
        assert hands.renew(run, fence)[1]
        assert hands.settle(tenant, run, fence, Settlement(asked)).state == ends


def test_a_claim_of_what_may_not_start_any_more_goes_back(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    suspend = "UPDATE tenants SET suspended_at = %s WHERE id = %s"
    rest = str(tenant.tenant)
    cap = LimitRequest("cap", LimitKind.CONCURRENCY, 1)
    for note, begin, end in (
        ("the tenant is suspended", lambda: installation.rows(suspend, "now", rest),
         lambda: installation.rows(suspend, None, rest)),
        ("the tenant is paused", lambda: installation.write(tenant, switches.pause),
         lambda: installation.write(tenant, switches.resume)),
        ("the task is paused", lambda: installation.write(tenant, switches.pause, "diagnostics.echo"),
         lambda: installation.write(tenant, switches.resume, "echo")),
        ("the limit cap is reached",
         lambda: (hands.running(tenant), installation.write(tenant, limits.put, cap)), lambda: None),
    ):  # fmt: skip
        run = installation.trigger(tenant, "diagnostics.echo")
        fence = hands.release(tenant, run)[run]
        begin()
        claim = hands.claim(tenant, run, fence)
        assert claim is not None
        assert (claim.held, claim.attempt, claim.args) == (True, 0, {})
        assert installation.history(run)[-1] == (3, "QUEUED", 0)
        assert installation.rows("SELECT note FROM run_events WHERE run_id = %s AND sequence = 3", str(run)) == [
            (note,)
        ]
        assert installation.rows("SELECT 1 FROM run_leases WHERE run_id = %s", str(run)) == []
        end()


def test_three_crashes_are_a_dead_letter_whatever_its_budget(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    run = installation.trigger(tenant, "diagnostics.echo")
    states = []
    for _ in range(3):
        hands.due(run)
        hands.requeue(unclaimed_seconds=3600)
        fence = hands.release(tenant, run)[run]
        assert hands.claim(tenant, run, fence) is not None
        change = hands.app.report_crash(tenant.tenant, run, fence, "signal: SIGSEGV")
        assert change is not None
        states.append(change.state)
    assert states == ["SCHEDULED", "SCHEDULED", "FAILED"]
    ended = installation.run(tenant, run)
    assert (ended.crashes, ended.error) == (
        3,
        {"type": "WorkerLost", "message": "signal: SIGSEGV", "retryable": True},
    )


def test_what_is_due_is_queued_once_and_nothing_else(
    installation: Installation, hands: Hands, tenant: Principal, other_tenant: Principal
) -> None:
    mine, its = (installation.trigger(one, "diagnostics.echo", delay_seconds=60) for one in (tenant, other_tenant))
    later = installation.trigger(tenant, "diagnostics.echo", delay_seconds=60)
    for run in (mine, its):
        hands.due(run)
    assert mine in [change.run for change in hands.queue_due(tenant)]
    assert installation.states(its) == ["SCHEDULED"]
    moved = [change.run for change in hands.queue_due()]
    assert its in moved
    assert not {mine, later} & set(moved)
    assert hands.system.call("SELECT * FROM queue_runs(%s, %s, NULL)", [tenant.tenant], [mine]) == []
    assert installation.states(mine) == ["SCHEDULED", "QUEUED"]


def test_a_dispatcher_whose_lead_is_over_moves_nothing(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    run = installation.trigger(tenant, "diagnostics.echo")
    installation.rows("UPDATE dispatcher_leader SET epoch = epoch + 1")
    calls: list[Callable[[], object]] = [
        lambda: hands.release(tenant, run),
        lambda: hands.requeue(),
        lambda: hands.queue_due(),
        lambda: hands.queue_due(tenant),
        lambda: hands.rescue(),
        lambda: hands.take_back(tenant, run, 0),
    ]
    for call in calls:
        with pytest.raises(NotLeading):
            call()
    assert installation.history(run) == [(1, "QUEUED", 0)]
    installation.rows("UPDATE dispatcher_leader SET epoch = epoch - 1")
    assert run in hands.release(tenant, run)


@pytest.mark.parametrize("said", ["a\0b", "\ud800", "x" * 3000, "'; --", "%s %(x)s"])
def test_a_failure_is_told_whatever_it_says(
    installation: Installation, hands: Hands, tenant: Principal, said: str
) -> None:
    run, fence = hands.running(tenant)
    error = {"type": "X", "message": said, "retryable": False}
    assert hands.settle(tenant, run, fence, Settlement(S.FAILED, error=error, note=said)).state == "FAILED"
    told = installation.run(tenant, run).error
    assert told is not None
    assert told["message"] == documents.readable(said)


def test_to_release_a_run_nobody_looks_through_what_waits_though_no_table_was_ever_analysed(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    installation.rows(
        "INSERT INTO runs (tenant_id, id, task, queue, args, priority, rank, state, max_attempts, actor_kind, actor,"
        " available_at) SELECT %s, new_id(), 'diagnostics.echo', 'diagnostics', '{}', 5, now(), 'QUEUED', 1, 'USER',"
        " 'a', now() FROM generate_series(1, 5000)",
        str(tenant.tenant),
    )
    rows = installation.rows("SELECT id FROM runs WHERE tenant_id = %s LIMIT 10", str(tenant.tenant))
    wanted = [tenant.tenant] * len(rows), [run for (run,) in rows]
    with closing(psycopg2.connect(installation.addresses.system)) as connection, connection.cursor() as cursor:
        cursor.execute(waiting._CANDIDATES, wanted)
        assert len(cursor.fetchall()) == 10
        cursor.execute("SELECT 1 FROM release_runs(%s, %s, %s, %s)", (SHARD, hands.epoch, *wanted))
        assert len(cursor.fetchall()) == 10
        cursor.execute("SELECT sum(idx_tup_fetch) FROM pg_stat_xact_user_tables WHERE relname LIKE 'runs%'")
        [(read,)] = cursor.fetchall()
        connection.rollback()
    installation.rows("DELETE FROM runs WHERE tenant_id = %s", str(tenant.tenant))
    assert 0 < read < 200
