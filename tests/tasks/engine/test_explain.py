"""Why a run waits: for every reason the right one, with the limit's name and when it may start."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.engine import explain, limits, switches
from tasks.engine.admission import LimitKind
from tasks.engine.explain import Explanation, WaitReason
from tasks.engine.ledger import Settlement
from tasks.engine.limits import LimitRequest
from tasks.engine.states import RunState
from tenants.context import Principal
from tests.support.hands import WORKER, Hands
from tests.support.installations import Installation

ECHO = "diagnostics.echo"
CAP = LimitRequest("two at once", LimitKind.CONCURRENCY, 2)


@pytest.fixture(autouse=True)
def worker(installation: Installation, hands: Hands) -> Iterator[None]:
    """A live worker; the hands lead."""
    hands.app.call("SELECT worker_seen(%s, %s, %s, %s, %s, %s, %s)", WORKER, ["diagnostics"], 10, 0, 0, False, True)
    installation.rows("UPDATE workers SET last_seen = now() + interval '1 hour'")
    yield
    installation.rows("UPDATE dispatcher_leader SET expires_at = now() + interval '1 hour'")


def _why(installation: Installation, tenant: Principal, **options: Any) -> Explanation:
    run = installation.trigger(tenant, ECHO, **options)
    return installation.write(tenant, explain.explain, run)


def test_a_delayed_run_waits_for_its_time(installation: Installation, tenant: Principal) -> None:
    why = _why(installation, tenant, delay_seconds=3600)
    assert (why.reason, why.expected_start) == (WaitReason.TIME, why.run.available_at)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"type": "RetryLater", "message": "429"}, WaitReason.PROVIDER_BACKOFF),
        ({"type": "ValueError", "message": "no"}, WaitReason.TIME),
    ],
)
def test_a_retry_waits_for_its_time_or_for_a_provider(
    installation: Installation, hands: Hands, tenant: Principal, error: dict[str, str], reason: WaitReason
) -> None:
    run, fence = hands.running(tenant)
    hands.settle(tenant, run, fence, Settlement(RunState.SCHEDULED, error=error, delay_seconds=60))
    why = installation.write(tenant, explain.explain, run)
    assert (why.reason, why.expected_start) == (reason, why.run.available_at)


@pytest.mark.parametrize(("event", "reason"), [("paid", WaitReason.EVENT), ("approval:invoice 7", WaitReason.APPROVAL)])
def test_a_waiting_run_names_its_event(
    installation: Installation, hands: Hands, tenant: Principal, event: str, reason: WaitReason
) -> None:
    run, fence = hands.running(tenant)
    hands.settle(tenant, run, fence, Settlement(RunState.WAITING, event=event))
    why = installation.write(tenant, explain.explain, run)
    assert why.reason is reason
    assert event.removeprefix("approval:") in why.message


def test_what_is_at_work_ended_or_on_its_way_does_not_wait(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    run, fence = hands.running(tenant)
    released = installation.trigger(tenant, ECHO)
    hands.release(tenant, released)
    assert installation.write(tenant, explain.explain, run).reason is WaitReason.NOT_WAITING
    assert installation.write(tenant, explain.explain, released).reason is WaitReason.NOT_WAITING
    hands.settle(tenant, run, fence, Settlement(RunState.SUCCEEDED))
    assert installation.write(tenant, explain.explain, run).reason is WaitReason.NOT_WAITING


def test_pauses_come_before_all_else(installation: Installation, tenant: Principal) -> None:
    installation.write(tenant, switches.pause, "echo", "the printer is out of paper")
    why = _why(installation, tenant)
    assert why.reason is WaitReason.TASK_PAUSED
    assert "out of paper" in why.message
    installation.write(tenant, switches.pause, None, "month's end")
    why = _why(installation, tenant)
    assert (why.reason, "month's end" in why.message) == (WaitReason.TENANT_PAUSED, True)
    installation.write(tenant, switches.resume)
    installation.write(tenant, switches.resume, "echo")
    run = installation.trigger(tenant, ECHO)
    installation.rows("UPDATE tenants SET suspended_at = now() WHERE id = %s", str(tenant.tenant))
    why = installation.write(tenant, explain.explain, run)
    assert (why.reason, "suspended" in why.message) == (WaitReason.TENANT_PAUSED, True)


def test_a_missing_dispatcher_and_a_missing_worker_are_named(installation: Installation, tenant: Principal) -> None:
    installation.rows("UPDATE workers SET last_seen = now() - interval '1 hour'")
    why = _why(installation, tenant)
    assert (why.reason, "diagnostics" in why.message) == (WaitReason.NO_WORKER, True)
    installation.rows("UPDATE dispatcher_leader SET expires_at = now()")
    assert _why(installation, tenant).reason is WaitReason.NO_DISPATCHER


def test_a_task_that_no_worker_knows_is_named(installation: Installation, tenant: Principal) -> None:
    for known, reason in (([ECHO], WaitReason.FAIR_SHARE), (["diagnostics.other"], WaitReason.NO_WORKER)):
        installation.rows("UPDATE workers SET tasks = %s", known)
        why = _why(installation, tenant)
        assert (why.reason, "knows the task diagnostics.echo" in why.message) == (
            reason,
            reason is WaitReason.NO_WORKER,
        )


def test_a_cap_that_is_reached_is_named_with_the_place_behind_it(
    installation: Installation, hands: Hands, tenant: Principal, other_tenant: Principal
) -> None:
    installation.write(tenant, limits.put, CAP)
    done, fence = hands.running(tenant)
    installation.rows(
        "UPDATE run_events SET at = at - interval '60 s' WHERE run_id = %s AND state = 'RUNNING'", str(done)
    )
    hands.settle(tenant, done, fence, Settlement(RunState.SUCCEEDED))
    hands.running(tenant)
    assert _why(installation, tenant).reason is WaitReason.FAIR_SHARE, "one of two runs"
    hands.running(tenant)
    why = _why(installation, tenant)
    assert (why.reason, why.limit_name, why.position) == (WaitReason.CONCURRENCY_LIMIT, "two at once", 2)
    assert why.expected_start is not None
    ahead = (why.expected_start - datetime.now(UTC)).total_seconds()
    assert 50 < ahead < 70, "the second to start after runs of a minute, two at once"
    assert _why(installation, other_tenant).reason is WaitReason.FAIR_SHARE


def test_a_cap_for_each_key_counts_the_runs_own_key(
    installation: Installation, hands: Hands, tenant: Principal
) -> None:
    installation.write(tenant, limits.put, LimitRequest("each", LimitKind.CONCURRENCY, 1, concurrency_key="*"))
    busy = installation.trigger(tenant, ECHO, concurrency_key="a")
    assert hands.claim(tenant, busy, hands.release(tenant, busy)[busy]) is not None
    assert _why(installation, tenant, concurrency_key="a").limit_name == "each"
    assert _why(installation, tenant, concurrency_key="b").reason is WaitReason.FAIR_SHARE
    assert _why(installation, tenant).reason is WaitReason.FAIR_SHARE


def test_a_rate_that_is_used_up_says_when_it_opens(installation: Installation, tenant: Principal) -> None:
    rate = installation.write(tenant, limits.put, LimitRequest("one a minute", LimitKind.RATE, 1, 60))
    installation.rows(
        "INSERT INTO limit_states VALUES (%s, %s, '', extract(epoch FROM clock_timestamp()) + 30)",
        str(tenant.tenant), str(rate.id),
    )  # fmt: skip
    first, second = _why(installation, tenant), _why(installation, tenant)
    for place, why in enumerate((first, second), start=1):
        assert (why.reason, why.limit_name, why.position) == (WaitReason.RATE_LIMIT, "one a minute", place)
    assert first.expected_start is not None
    assert second.expected_start is not None
    assert timedelta(seconds=20) < first.expected_start - datetime.now(UTC) < timedelta(seconds=31)
    assert second.expected_start - first.expected_start == timedelta(seconds=60)


def test_in_turn_it_is_told_its_place_and_the_pace(installation: Installation, hands: Hands, tenant: Principal) -> None:
    first = _why(installation, tenant)
    assert (first.reason, first.position, first.expected_start) == (WaitReason.FAIR_SHARE, 1, None)
    hands.running(tenant)
    second = _why(installation, tenant)
    assert second.position == 2
    assert second.expected_start is not None


def test_a_start_beyond_all_dates_is_not_told(installation: Installation, tenant: Principal) -> None:
    rate = installation.write(tenant, limits.put, LimitRequest("hardly ever", LimitKind.RATE, 1e-6, 31 * 86_400))
    installation.rows(
        "INSERT INTO limit_states VALUES (%s, %s, '', extract(epoch FROM clock_timestamp()) + 3e12)",
        str(tenant.tenant), str(rate.id),
    )  # fmt: skip
    why = _why(installation, tenant)
    assert (why.reason, why.expected_start) == (WaitReason.RATE_LIMIT, None)
