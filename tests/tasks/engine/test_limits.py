"""Who may set which limits; and what a trigger and a claim refuse under them, however many come at once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tasks.engine import limits, runs, switches
from tasks.engine.admission import LimitKind
from tasks.engine.ledger import Settlement
from tasks.engine.limits import LimitRequest
from tasks.engine.runs import TriggerRequest
from tasks.engine.states import RunState
from tenants import db
from tenants.context import ActorKind, Principal
from tenants.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    InvalidState,
    NotFound,
    QuotaExceeded,
    TenantryError,
    UnknownTask,
)
from tests.support.hands import Hands
from tests.support.installations import Installation, eventually

CAP = LimitRequest("cap", LimitKind.CONCURRENCY, 2)
RATE = LimitRequest("rate", LimitKind.RATE, 10)
BACKLOG = LimitRequest("backlog", LimitKind.BACKLOG, 10)
WEIGHT = LimitRequest("share", LimitKind.WEIGHT, 2)
ECHO = TriggerRequest("diagnostics.echo")


@pytest.fixture
def operator(tenant: Principal) -> Principal:
    """An operator inside the tenant."""
    return replace(tenant, kind=ActorKind.OPERATOR, actor="tests")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (replace(CAP, name=""), "name"),
        (replace(CAP, name="x" * 101), "name"),
        (replace(CAP, name="a\0b"), "name"),
        *((replace(CAP, amount=amount), "amount") for amount in (0, -1, 1.5, float("nan"), float("inf"), 1e7)),
        (replace(BACKLOG, amount=0.5), "amount"),
        (replace(RATE, amount=0), "amount"),
        (replace(CAP, per_seconds=1), "perSeconds"),
        (replace(CAP, burst=1), "burst"),
        (replace(RATE, per_seconds=0), "perSeconds"),
        (replace(RATE, per_seconds=float("nan")), "perSeconds"),
        (replace(RATE, burst=0), "burst"),
        (replace(RATE, burst=1.5), "burst"),
        (replace(CAP, queue="no-such"), "queue"),
        (replace(CAP, concurrency_key=""), "concurrencyKey"),
        (replace(CAP, concurrency_key="x" * 256), "concurrencyKey"),
        (replace(BACKLOG, concurrency_key="*"), "concurrencyKey"),
    ],
)
def test_a_wrong_value_is_named_and_nothing_is_set(
    installation: Installation, tenant: Principal, request_: LimitRequest, field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        installation.write(tenant, limits.put, request_)
    assert [issue.path for issue in refused.value.issues] == [(field,)]
    assert installation.write(tenant, limits.every) == []


@pytest.mark.parametrize("name", ["task_name", "queue", "concurrency_key"])
def test_a_weight_is_for_the_whole_tenant(installation: Installation, operator: Principal, name: str) -> None:
    values: dict[str, Any] = {"task_name": "echo", "queue": "diagnostics", "concurrency_key": "k"}
    with pytest.raises(InvalidInput):
        installation.write(operator, limits.put, replace(WEIGHT, **{name: values[name]}))


def test_a_task_that_is_none_is_refused_with_the_nearest_names(installation: Installation, tenant: Principal) -> None:
    with pytest.raises(UnknownTask) as refused:
        installation.write(tenant, limits.put, replace(CAP, task_name="ecko"))
    assert "diagnostics.echo" in refused.value.candidates


def test_a_limit_is_replaced_by_one_of_its_name_and_kind(installation: Installation, tenant: Principal) -> None:
    first = installation.write(tenant, limits.put, CAP)
    second = installation.write(tenant, limits.put, replace(CAP, amount=3, task_name="echo"))
    assert (second.id, second.amount, second.task) == (first.id, 3, "diagnostics.echo")
    rate = installation.write(tenant, limits.put, replace(RATE, name="cap"))
    assert (rate.per_seconds, rate.burst) == (1, 1)
    assert [row.kind for row in installation.write(tenant, limits.every)] == ["CONCURRENCY", "RATE"]
    installation.write(tenant, limits.remove, first.id)
    assert [row.kind for row in installation.write(tenant, limits.every)] == ["RATE"]
    with pytest.raises(NotFound):
        installation.write(tenant, limits.remove, first.id)


def test_two_who_set_one_limit_at_once_leave_one(installation: Installation, tenant: Principal) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda amount: installation.write(tenant, limits.put, replace(CAP, amount=amount)), range(1, 9))
        )
    assert len({row.id for row in made}) == 1
    assert len(installation.write(tenant, limits.every)) == 1


def test_what_operators_set_only_operators_change(
    installation: Installation, tenant: Principal, operator: Principal
) -> None:
    limit = installation.write(operator, limits.put, CAP)
    for service, given in ((limits.put, replace(CAP, amount=100)), (limits.remove, limit.id)):
        with pytest.raises(Forbidden, match="An operator has set"):
            installation.write(tenant, service, given)
    with pytest.raises(Forbidden, match="Only operators"):
        installation.write(tenant, limits.put, WEIGHT)
    installation.write(operator, limits.put, WEIGHT)
    with pytest.raises(Conflict, match="share"):
        installation.write(operator, limits.put, replace(WEIGHT, name="another"))
    assert {(row.name, row.amount) for row in installation.write(tenant, limits.every)} == {("cap", 2), ("share", 2)}


def test_a_tenant_has_so_many_limits_and_no_more(installation: Installation, tenant: Principal) -> None:
    for number in range(100):
        installation.write(tenant, limits.put, replace(CAP, name=f"cap {number}"))
    with pytest.raises(QuotaExceeded):
        installation.write(tenant, limits.put, CAP)
    assert len(installation.write(tenant, limits.every)) == 100


def test_how_far_a_limit_is_used(installation: Installation, hands: Hands, tenant: Principal) -> None:
    cap = installation.write(tenant, limits.put, replace(CAP, task_name="echo"))
    each = installation.write(tenant, limits.put, replace(CAP, name="each", concurrency_key="*"))
    backlog = installation.write(tenant, limits.put, BACKLOG)
    rate = installation.write(tenant, limits.put, replace(RATE, amount=1, per_seconds=3600))
    hands.running(tenant)
    installation.trigger(tenant, "diagnostics.echo", delay_seconds=60)
    installation.rows(
        "INSERT INTO limit_states VALUES (%s, %s, '', extract(epoch FROM clock_timestamp()) + 3599)",
        str(tenant.tenant), str(rate.id),
    )  # fmt: skip
    assert installation.write(tenant, limits.used) == {cap.id: 1, backlog.id: 1, rate.id: 1}
    assert each.id not in installation.write(tenant, limits.used)


def test_no_more_wait_than_the_backlog_allows_whoever_comes_at_once(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    installation.write(tenant, limits.put, BACKLOG)

    def trigger(number: int) -> str:
        try:
            installation.write(tenant, runs.trigger, replace(ECHO, idempotency_key=f"k{number % 25}"))
        except TenantryError as error:
            return error.code
        return "accepted"

    with ThreadPoolExecutor(10) as pool:
        answers = Counter(pool.map(trigger, range(50)))
    assert set(answers) == {"accepted", "QUOTA_EXCEEDED"}
    waiting = installation.rows("SELECT count(*) FROM runs WHERE tenant_id = %s", str(tenant.tenant))
    assert waiting == [(10,)]
    with pytest.raises(QuotaExceeded) as refused:
        installation.write(tenant, runs.trigger, ECHO)
    error = refused.value
    assert (error.limit_name, error.limit, error.used) == ("backlog", 10, 10)
    installation.write(other_tenant, runs.trigger, ECHO)


def test_a_bulk_beyond_the_backlog_is_refused_whole_and_what_it_names_not_is_free(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    installation.write(tenant, limits.put, replace(BACKLOG, task_name="echo"))
    with pytest.raises(QuotaExceeded) as refused:
        installation.write(tenant, runs.trigger_many, [ECHO] * 11)
    assert refused.value.used == 0
    assert installation.rows("SELECT 1 FROM runs WHERE tenant_id = %s", str(tenant.tenant)) == []
    installation.write(tenant, runs.trigger_many, [ECHO] * 10)
    installation.write(
        tenant, runs.trigger_many, [TriggerRequest("diagnostics.write", {"key": "k", "value": "v"})] * 11
    )
    [first, *_] = installation.rows("SELECT id FROM runs WHERE task = 'diagnostics.echo' AND tenant_id = %s LIMIT 1",
                                    str(tenant.tenant))  # fmt: skip
    fence = hands.release(tenant, first[0])[first[0]]
    assert hands.claim(tenant, first[0], fence) is not None
    installation.write(tenant, runs.trigger, ECHO)


def test_a_drained_tenant_accepts_nothing_new_and_runs_what_it_accepted(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    run = installation.trigger(tenant, "diagnostics.echo", idempotency_key="k")
    other = TriggerRequest("diagnostics.write", {"key": "k", "value": "v"})
    installation.write(tenant, switches.pause, "echo", draining=True)
    with pytest.raises(InvalidState) as refused:
        installation.write(tenant, runs.trigger, ECHO)
    assert (refused.value.state, "diagnostics.echo" in refused.value.message) == ("DRAINING", True)
    assert installation.write(tenant, runs.trigger, replace(ECHO, idempotency_key="k")).replayed
    installation.write(tenant, runs.trigger, other)
    installation.write(tenant, switches.pause, draining=True)
    with pytest.raises(InvalidState):
        installation.write(tenant, runs.trigger, other)
    fence = hands.release(tenant, run)[run]
    claim = hands.claim(tenant, run, fence)
    assert claim is not None
    assert not claim.held
    hands.settle(tenant, run, fence, Settlement(RunState.SUCCEEDED))
    installation.write(tenant, switches.resume)
    installation.write(tenant, runs.trigger, other)
    with pytest.raises(InvalidState):
        installation.write(tenant, runs.trigger, ECHO)
    installation.write(tenant, switches.resume, "echo")
    installation.write(tenant, runs.trigger, ECHO)


def test_of_claims_under_one_cap_at_once_no_more_than_its_amount_get_through(
    installation: Installation, hands: Hands, tenant: Principal, other_tenant: Principal
) -> None:
    """As when a cap is lowered, or a dispatcher has counted wrong: the claim is asked last."""
    installation.write(tenant, limits.put, replace(CAP, amount=3))
    installation.write(tenant, limits.put, replace(CAP, name="each", amount=1, concurrency_key="*"))
    waiting = [installation.trigger(tenant, "diagnostics.echo", concurrency_key=f"k{n % 5}") for n in range(20)]
    fences = hands.release(tenant, *waiting)
    others = [Hands(installation) for _ in range(6)]

    def claim(place: int) -> bool:
        run = waiting[place]
        found = others[place % 6].claim(tenant, run, fences[run])
        assert found is not None
        return not found.held

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(claim, range(20))) == 3
    for other in others:
        other.close()
    running = installation.rows(
        "SELECT concurrency_key FROM runs WHERE state = 'RUNNING' AND tenant_id = %s", str(tenant.tenant)
    )
    assert len(set(running)) == len(running) == 3
    hands.running(other_tenant)


def test_a_limit_that_an_operator_is_just_taking_over_is_not_removed_by_the_tenant(
    installation: Installation, tenant: Principal, operator: Principal
) -> None:
    limit = installation.write(tenant, limits.put, CAP)
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with ThreadPoolExecutor(1) as pool, db.open_session(engine, operator) as taking:
        limits.put(taking, replace(CAP, amount=1))
        removed = pool.submit(installation.write, tenant, limits.remove, limit.id)
        eventually(lambda: installation.rows(waits))
        taking.commit()
        with pytest.raises(Forbidden):
            removed.result()
    engine.dispose()
    assert [row.amount for row in installation.write(tenant, limits.every)] == [1]


def test_what_operators_pause_only_operators_resume(
    installation: Installation, tenant: Principal, operator: Principal
) -> None:
    installation.write(operator, switches.pause, None, "an incident")
    for service, given in ((switches.resume, (None,)), (switches.pause, (None, "ours"))):
        with pytest.raises(Forbidden, match="An operator has paused"):
            installation.write(tenant, service, *given)
    installation.write(tenant, switches.pause, "echo")
    installation.write(tenant, switches.resume, "echo")
    installation.write(tenant, switches.resume, "echo")
    assert [row.note for row in installation.write(tenant, switches.pauses)] == ["an incident"]
    installation.write(operator, switches.resume)
    assert installation.write(tenant, switches.pauses) == []


@pytest.mark.parametrize("note", ["a\0b", "x" * 1001])
def test_a_pause_with_a_note_that_can_not_be_kept_is_refused(
    installation: Installation, tenant: Principal, note: str
) -> None:
    with pytest.raises(InvalidInput):
        installation.write(tenant, switches.pause, None, note)
    assert installation.write(tenant, switches.pauses) == []
