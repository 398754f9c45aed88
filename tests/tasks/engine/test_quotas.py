"""Quotas of runs: exact however many come at once, at every door, and free for who has none."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg2
import pytest

from tasks.engine import bulk_actions, runs, usage
from tasks.engine.bulk_actions import ActionKind
from tasks.engine.filters import RunFilter
from tasks.engine.housekeeping import Housekeeping
from tasks.engine.ledger import SHARD, Settlement
from tasks.engine.runs import TriggerRequest
from tasks.engine.states import RunState
from tenants import db, quotas, system
from tenants.context import Principal
from tenants.errors import InvalidInput, QuotaExceeded
from tenants.quotas import Quota
from tests.support.hands import Hands
from tests.support.installations import Installation, eventually

ECHO = TriggerRequest("diagnostics.echo")
FAR = 10_000_000
Limit = Callable[..., None]


@pytest.fixture
def limit(installation: Installation, tenant: Principal) -> Limit:
    """Gives the tenant quotas of its own."""
    slug = installation.slug(tenant)
    operator = system.acting(installation.settings, system.OPERATORS, "tests")

    def give(**most: float | None) -> None:
        own = {Quota(name): amount for name, amount in most.items()}
        installation.write(operator, quotas.assign, slug, quotas.DEFAULT, own)

    return give


def _used(installation: Installation, tenant: Principal, quota: Quota = Quota.RUNS) -> float:
    return installation.write(tenant, usage.read).quotas[quota].used


def _count(installation: Installation, tenant: Principal) -> int:
    [(count,)] = installation.rows("SELECT count(*) FROM runs WHERE tenant_id = %s", str(tenant.tenant))
    return int(count)


def _fold(hands: Hands) -> None:
    while hands.system.call("SELECT fold_usage(1000)")[0][0]:
        pass


def _spend(installation: Installation, tenant: Principal, runs_: int) -> None:
    """So many runs were accepted this month."""
    installation.rows(
        "INSERT INTO usage (tenant_id, period, kind, amount) VALUES (%s, usage_period(now()), 'runs', %s)"
        " ON CONFLICT (tenant_id, period, kind) DO UPDATE SET amount = excluded.amount",
        str(tenant.tenant), runs_,
    )  # fmt: skip


def _try(installation: Installation, tenant: Principal, *requests: TriggerRequest) -> bool:
    try:
        installation.write(tenant, runs.trigger_many, requests or [ECHO])
    except QuotaExceeded:
        return False
    return True


@pytest.mark.parametrize("most", [5, FAR])
def test_of_twenty_at_once_five_get_the_last_five(
    installation: Installation, tenant: Principal, limit: Limit, most: int
) -> None:
    limit(runs=most)
    _spend(installation, tenant, most - 5)
    together = threading.Barrier(20)

    def one(_: int) -> bool:
        together.wait()
        return _try(installation, tenant)

    with ThreadPoolExecutor(20) as pool:
        assert Counter(pool.map(one, range(20))) == {True: 5, False: 15}
    assert _count(installation, tenant) == 5
    assert _used(installation, tenant) == most


def test_bulks_and_single_ones_that_come_while_it_is_folded_keep_to_it(
    installation: Installation, tenant: Principal, limit: Limit, hands: Hands
) -> None:
    limit(runs=100)
    done = threading.Event()

    def fold() -> None:
        with closing(psycopg2.connect(installation.addresses.system)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            while not done.is_set():
                cursor.execute("SELECT fold_usage(3)")

    with ThreadPoolExecutor(10) as pool:
        folding = pool.submit(fold)
        sizes = [7, 1, 13, 1, 1, 9] * 6
        accepted = pool.map(lambda size: size * _try(installation, tenant, *[ECHO] * size), sizes)
        total = sum(accepted)
        done.set()
        folding.result()
    assert total == _count(installation, tenant) == _used(installation, tenant)
    assert total == 100, "single ones fill what no bulk fits in"


def test_who_is_far_from_the_limit_waits_for_nobody(
    installation: Installation, tenant: Principal, limit: Limit
) -> None:
    limit(runs=FAR, backlog=FAR)
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    with db.open_session(engine, tenant) as session:
        runs.trigger(session, ECHO)
        assert _try(installation, tenant), "while another has not committed"
        session.rollback()
    engine.dispose()
    assert _used(installation, tenant) == 1


def test_who_comes_near_waits_for_those_on_their_way_and_counts_them(
    installation: Installation, tenant: Principal, limit: Limit
) -> None:
    limit(runs=FAR)
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    with ThreadPoolExecutor(1) as pool, db.open_session(engine, tenant) as session:
        runs.trigger_many(session, [ECHO] * 3)
        limit(runs=4)
        other = pool.submit(_try, installation, tenant, ECHO, ECHO)
        eventually(lambda: installation.rows("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
        assert not other.done()
        session.commit()
        assert other.result() is False
    engine.dispose()
    assert _try(installation, tenant)
    assert not _try(installation, tenant)
    assert _count(installation, tenant) == 4


def test_the_refusal_names_the_quota_and_leaves_nothing(
    installation: Installation, tenant: Principal, limit: Limit
) -> None:
    limit(runs=2)
    keyed = replace(ECHO, idempotency_key="k")
    installation.write(tenant, runs.trigger, keyed)
    with pytest.raises(QuotaExceeded) as refused:
        installation.write(tenant, runs.trigger_many, [ECHO, replace(ECHO, idempotency_key="new")])
    assert (refused.value.limit_name, refused.value.limit, refused.value.used) == ("runs", 2, 1)
    assert _count(installation, tenant) == 1
    assert installation.rows("SELECT key FROM idempotency_keys WHERE tenant_id = %s", str(tenant.tenant)) == [("k",)]
    assert _try(installation, tenant)
    limit(runs=1)
    assert installation.write(tenant, runs.trigger, keyed).replayed, "an earlier run needs no room"
    assert _used(installation, tenant) == 2


def test_a_repetition_counts_too(installation: Installation, tenant: Principal, limit: Limit) -> None:
    limit(runs=1)
    run = installation.trigger(tenant, "diagnostics.echo")
    installation.write(tenant, runs.cancel, run)
    with pytest.raises(QuotaExceeded):
        installation.write(tenant, runs.retry, run)


def test_a_bulk_of_repetitions_stops_at_the_limit(
    installation: Installation, tenant: Principal, limit: Limit, hands: Hands
) -> None:
    ended = [installation.trigger(tenant, "diagnostics.echo") for _ in range(5)]
    for run in ended:
        installation.write(tenant, runs.cancel, run)
    limit(runs=7)
    step = timedelta(seconds=60)
    action = installation.write(
        tenant, bulk_actions.begin, ActionKind.RETRY, RunFilter(ids=ended, states=[RunState.CANCELLED])
    ).id
    eventually(lambda: _advanced(hands, step, installation, action))
    assert installation.rows("SELECT done, failed FROM bulk_actions WHERE id = %s", str(action)) == [(2, 3)]
    assert (_count(installation, tenant), _used(installation, tenant)) == (7, 7)


def _advanced(hands: Hands, step: timedelta, installation: Installation, action: UUID) -> bool:
    hands.system.call("SELECT * FROM advance_bulk_action(%s, %s, 100, 1000000, %s)", SHARD, hands.epoch, step)
    return bool(installation.rows("SELECT 1 FROM bulk_actions WHERE id = %s AND finished_at IS NOT NULL", str(action)))


def test_a_bulk_waits_for_nobody_who_holds_the_quota(
    installation: Installation, tenant: Principal, limit: Limit, hands: Hands
) -> None:
    run = installation.trigger(tenant, "diagnostics.echo")
    installation.write(tenant, runs.cancel, run)
    limit(runs=10)
    action = installation.write(
        tenant, bulk_actions.begin, ActionKind.RETRY, RunFilter(ids=[run], states=[RunState.CANCELLED])
    ).id
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    with db.open_session(engine, tenant) as session:
        runs.trigger(session, ECHO)
        assert not _advanced(hands, timedelta(seconds=60), installation, action)
        session.rollback()
    engine.dispose()
    assert _advanced(hands, timedelta(seconds=60), installation, action)
    assert installation.rows("SELECT done, failed FROM bulk_actions WHERE id = %s", str(action)) == [(1, 0)]


def test_what_may_wait_is_the_plans_too(
    installation: Installation, tenant: Principal, limit: Limit, hands: Hands
) -> None:
    limit(backlog=2)
    with ThreadPoolExecutor(8) as pool:
        assert Counter(pool.map(lambda _: _try(installation, tenant), range(8))) == {True: 2, False: 6}
    with pytest.raises(QuotaExceeded) as refused:
        installation.write(tenant, runs.trigger, ECHO)
    assert (refused.value.limit_name, refused.value.limit, refused.value.used) == ("backlog", 2, 2)
    [(run,)] = installation.rows("SELECT min(id::text)::uuid FROM runs WHERE tenant_id = %s", str(tenant.tenant))
    fence = hands.release(tenant, run)[run]
    assert hands.claim(tenant, run, fence) is not None
    assert _try(installation, tenant)


def test_a_change_of_plan_holds_at_the_next_trigger(installation: Installation, tenant: Principal) -> None:
    operator = system.acting(installation.settings, system.OPERATORS, "tests")
    slug = installation.slug(tenant)
    installation.write(operator, quotas.set_plan, "small", {Quota.RUNS: 1})
    assert [_try(installation, tenant) for _ in range(2)] == [True, True]
    installation.write(operator, quotas.assign, slug, "small")
    assert not _try(installation, tenant)
    installation.write(operator, quotas.set_plan, "small", {Quota.RUNS: 3})
    assert [_try(installation, tenant) for _ in range(2)] == [True, False]
    installation.write(operator, quotas.assign, slug, "small", {Quota.RUNS: None})
    assert _try(installation, tenant), "its own quota stands in place of the plan's"


class TestUsage:
    """What was used, folded or not, this month or another."""

    def test_it_is_the_same_before_and_after_it_is_folded(
        self, installation: Installation, tenant: Principal, hands: Hands
    ) -> None:
        run, fence = hands.running(tenant)
        hands.settle(tenant, run, fence, Settlement(RunState.SUCCEEDED))
        hands.settle(tenant, run, fence, Settlement(RunState.SUCCEEDED))
        before = installation.write(tenant, usage.read)
        _fold(hands)
        assert installation.rows("SELECT * FROM usage_entries WHERE tenant_id = %s", str(tenant.tenant)) == []
        after = installation.write(tenant, usage.read)
        assert before == after
        [(seconds,)] = installation.rows("SELECT worker_seconds FROM runs WHERE id = %s", str(run))
        assert after.worker_seconds == pytest.approx(seconds)
        assert (after.quotas[Quota.RUNS].used, after.quotas[Quota.RUNS].limit) == (1, None)

    def test_a_month_that_is_over_stays_readable_and_takes_nothing_from_this_one(
        self, installation: Installation, tenant: Principal, limit: Limit
    ) -> None:
        limit(runs=1)
        installation.rows(
            "INSERT INTO usage (tenant_id, period, kind, amount) VALUES (%s, '2020-02-01', 'runs', 7)",
            str(tenant.tenant),
        )
        past = installation.write(tenant, usage.read, "2020-02")
        assert (past.period, past.quotas[Quota.RUNS].used) == ("2020-02", 7)
        assert [_try(installation, tenant) for _ in range(2)] == [True, False]

    @pytest.mark.parametrize("wrong", ["", "2020", "2020-13", "2020-00", "0000-01", "2020-1", "x" * 100])
    def test_what_is_no_month_is_refused(self, installation: Installation, tenant: Principal, wrong: str) -> None:
        with pytest.raises(InvalidInput):
            installation.write(tenant, usage.read, wrong)

    def test_anothers_is_not_counted(
        self, installation: Installation, tenant: Principal, other_tenant: Principal, limit: Limit
    ) -> None:
        limit(runs=1)
        installation.trigger(other_tenant, "diagnostics.echo")
        assert _used(installation, tenant) == 0
        assert _try(installation, tenant)
        assert _used(installation, other_tenant) == 1


class TestAlarm:
    """At 80 %, once a month."""

    def test_it_is_told_once(self, installation: Installation, tenant: Principal, limit: Limit, hands: Hands) -> None:
        limit(runs=10, backlog=100)
        installation.trigger_many(tenant, [ECHO] * 7)
        _fold(hands)
        assert _alarms(installation, tenant) == []
        for _ in range(2):
            installation.trigger(tenant, "diagnostics.echo")
            _fold(hands)
        assert _alarms(installation, tenant) == [("runs", {"limit": 10, "used": 8})]
        assert installation.write(tenant, usage.read).quotas[Quota.RUNS].alarmed_at is not None
        limit(runs=10, backlog=11)
        installation.trigger(tenant, "diagnostics.echo")
        _fold(hands)
        assert _alarms(installation, tenant)[1:] == [("backlog", {"limit": 11, "used": 10})]

    def test_the_house_keeps_it(self, installation: Installation, tenant: Principal, limit: Limit) -> None:
        limit(runs=1)
        house = Housekeeping(installation.addresses.system, installation.settings.engine)
        house.begin()
        try:
            installation.trigger(tenant, "diagnostics.echo")
            eventually(lambda: _alarms(installation, tenant))
        finally:
            house.end()
            house.join()


def _alarms(installation: Installation, tenant: Principal) -> list[tuple[Any, ...]]:
    return installation.rows(
        "SELECT target, detail FROM audit_entries WHERE tenant_id = %s AND action = 'quota.alarm' ORDER BY at",
        str(tenant.tenant),
    )


async def test_a_trigger_under_a_quota_is_one_statement_too(
    installation: Installation, tenant: Principal, limit: Limit
) -> None:
    limit(runs=3)
    database = db.AsyncDatabase(installation.settings.database)
    accepted = await asyncio.gather(
        *(database.call(tenant, runs.trigger, [ECHO], {}) for _ in range(8)), return_exceptions=True
    )
    await database.close()
    assert Counter(type(one) for one in accepted) == {tuple: 3, QuotaExceeded: 5}


@pytest.fixture(autouse=True)
def _nothing_left_to_fold(hands: Hands) -> Iterator[None]:
    yield
    _fold(hands)
