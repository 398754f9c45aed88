"""What else can stand in a queue: duplicates, latecomers, forgeries, garbage. Rows 33–36, 54."""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from uuid import UUID

import pytest
import redis

from tasks import registry
from tasks.engine.ledger import Ledger, Settlement
from tasks.engine.messages import Release
from tasks.engine.runs import TriggerRequest
from tasks.engine.states import RunState
from tenants import ids, names
from tenants.context import Principal
from tests.faults import messages
from tests.faults.invariants import assert_invariants
from tests.faults.messages import QUEUE, Pen, StandIn
from tests.support.installations import Installation, eventually
from tests.support.proxy import Proxy
from tests.support.tiers import Tier

WRITE = TriggerRequest("diagnostics.write", {"key": "k", "value": "v"})
SEED = 20_261_120


@pytest.fixture
def hand(installation: Installation) -> Iterator[StandIn]:
    """Leads; one worker runs."""
    installation.start_worker()
    made = StandIn(installation)
    yield made
    made.resign()


def _trigger(installation: Installation, tenant: Principal, times: int = 1) -> list[UUID]:
    return installation.trigger_many(tenant, [WRITE] * times)


def _all_are_read(installation: Installation) -> None:
    with closing(redis.Redis.from_url(installation.redis_url)) as client:
        eventually(lambda: client.llen(QUEUE) == 0)


def test_row_33_a_hundred_copies_of_each_message_in_any_order_have_one_effect(
    installation: Installation, tenant: Principal, hand: StandIn
) -> None:
    runs = _trigger(installation, tenant, 5)
    copies = [hand.message(hand.release(run)) for run in runs] * 100
    random.Random(SEED).shuffle(copies)
    hand.send(*copies)
    for run in runs:
        assert installation.ended(tenant, run).attempt == 1
        assert installation.states(run) == ["QUEUED", "RELEASED", "RUNNING", "SUCCEEDED"]
    _all_are_read(installation)
    # A line to Redis that is broken and mended takes what it has read with it.
    eventually(lambda: 450 <= hand.refused().get("stale", 0) <= 495)
    assert hand.refused().keys() == {"stale"}
    assert_invariants(installation)


def test_row_34_a_message_that_arrives_after_the_run_has_ended_does_nothing(
    installation: Installation, tenant: Principal, hand: StandIn
) -> None:
    (run,) = _trigger(installation, tenant)
    message = hand.message(hand.release(run))
    hand.send(message)
    installation.ended(tenant, run)
    before = installation.history(run)
    hand.send(message)
    eventually(lambda: hand.refused() == {"stale": 1})
    assert installation.history(run) == before
    assert_invariants(installation)


def test_row_54_an_old_message_is_refused_after_the_attempt_was_given_back(
    installation: Installation, tenant: Principal, hand: StandIn
) -> None:
    (run,) = _trigger(installation, tenant)
    first = hand.release(run)
    ledger = Ledger(installation.addresses.app, installation.settings.engine, application="tests")
    claim = ledger.claim(first.tenant, run, first.fence, first.task, "tests", 60)
    assert claim is not None
    assert claim.attempt == 1
    ledger.settle(first.tenant, run, first.fence, Settlement(RunState.SCHEDULED, give_back=True, note="snoozed"))
    ledger.close()
    installation.rows("SELECT * FROM queue_due_runs('main', 1, 10)")
    second = hand.release(run)
    assert second.fence > first.fence
    hand.send(*[hand.message(first)] * 3)
    eventually(lambda: hand.refused() == {"stale": 3})
    assert installation.states(run)[-1] == "RELEASED"
    hand.send(hand.message(second), hand.message(first))
    assert installation.ended(tenant, run).attempt == 1
    eventually(lambda: hand.refused() == {"stale": 4})
    assert_invariants(installation)


def test_a_release_that_a_crash_of_the_database_has_forgotten_is_not_repeated_under_its_fence(
    installation: Installation, tenant: Principal, hand: StandIn
) -> None:
    (run,) = _trigger(installation, tenant)
    forgotten = hand.release(run)
    installation.rows("UPDATE runs SET state = 'QUEUED', sequence = 1, fence = 0")
    installation.rows("DELETE FROM run_events WHERE sequence > 1")
    release = hand.release(run)
    assert release.fence > forgotten.fence
    hand.send(hand.message(forgotten))
    eventually(lambda: hand.refused() == {"stale": 1})
    hand.send(hand.message(release))
    assert installation.ended(tenant, run).attempt == 1
    assert_invariants(installation)


def test_an_attempt_commits_nothing_where_its_twin_under_the_same_fence_has_settled(
    installation: Installation, tenant: Principal, database_proxy: Proxy
) -> None:
    installation.environment.update(TENANTRY_ENGINE__LEASE_SECONDS="60", TENANTRY_ENGINE__RENEW_SECONDS="20")
    installation.start_worker("w1", DATABASE_URL=database_proxy.through(installation.addresses.app))
    hand = StandIn(installation)
    (run,) = _trigger(installation, tenant)
    release = hand.release(run)
    trap = database_proxy.trap(b"settle_run")
    hand.send(hand.message(release))
    trap.wait()
    installation.rows(
        "INSERT INTO diagnostics_marks (tenant_id, id, key, value, run_id, attempt) VALUES (%s, %s, 'k', 'v', %s, 1)",
        str(tenant.tenant),
        str(ids.new()),
        str(run),
    )
    ledger = Ledger(installation.addresses.app, installation.settings.engine, application="tests")
    ledger.settle(tenant.tenant, run, release.fence, Settlement(RunState.SUCCEEDED))
    ledger.close()
    trap.release()
    eventually(lambda: "attempt_fenced" in installation.log("w1"))
    hand.resign()
    assert_invariants(installation)


def test_rows_35_and_36_what_is_malformed_or_forged_is_refused_and_counted_and_the_worker_lives(
    installation: Installation, tenant: Principal, other_tenant: Principal, hand: StandIn
) -> None:
    (run,) = _trigger(installation, tenant)
    release = hand.release(run)
    before = installation.history(run)
    children = installation.children("w1")
    other_queue = next(name for name in registry.queues() if name != QUEUE)
    bad = messages.falsified(hand, release, other_tenant.tenant, other_queue)
    for case in bad:
        hand.send(case.element, queue=case.queue)
    expected = Counter(case.reason for case in bad)
    eventually(lambda: sum(hand.refused().values()) == len(bad))
    noted = dict(installation.rows("SELECT digest, reason FROM refused_messages"))
    told = {case.name: noted.get(hashlib.sha256(case.element).hexdigest(), "stale") for case in bad}
    assert told == {case.name: case.reason for case in bad}
    assert hand.refused() == expected
    assert len(bad) > 40
    assert installation.history(run) == before
    assert installation.processes["w1"].poll() is None
    assert installation.children("w1") == children
    hand.send(hand.message(release))
    assert installation.ended(tenant, run).attempt == 1
    assert_invariants(installation)


def test_a_thousand_random_damages_to_a_message_run_nothing_twice_and_kill_nobody(
    installation: Installation, tenant: Principal, hand: StandIn
) -> None:
    (run,) = _trigger(installation, tenant)
    release = hand.release(run)
    chance = random.Random(SEED)
    good = hand.message(release)
    for _ in range(1000):
        damaged = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        hand.send(bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])]))
    _all_are_read(installation)
    hand.send(good)
    assert installation.ended(tenant, run).attempt == 1
    (after,) = _trigger(installation, tenant)
    hand.send(hand.message(hand.release(after)))
    assert installation.ended(tenant, after).attempt == 1
    assert installation.processes["w1"].poll() is None
    eventually(lambda: sum(hand.refused().values()) == 1000)  # One of 1,001 messages for the run was the first.
    assert_invariants(installation)


_ENVELOPE = (
    b'{"headers": {}, "properties": {"delivery_info": {}, "delivery_tag": "t", "body_encoding": "base64"},'
    b' "content-type": "application/json", "content-encoding": "utf-8", "body": "%s"}'
)
NO_ORDERS = [
    b"[1]",
    b"7",
    b"not json",
    b"{}",
    b'{"headers": [], "properties": {}, "body": ""}',
    b'{"headers": {}, "properties": {"delivery_info": {}, "delivery_tag": 1}, "body": {}}',
    _ENVELOPE % b"e30",
    _ENVELOPE % b"Nw==",
]


def test_no_control_message_ends_a_worker(installation: Installation, tenant: Principal) -> None:
    installation.start_dispatcher()
    installation.start_worker("w1")
    with closing(redis.Redis.from_url(installation.redis_url)) as client:
        for garbage in NO_ORDERS:
            eventually(lambda garbage=garbage: client.publish("/0.celery.pidbox", garbage))  # type: ignore[misc]
        (run,) = _trigger(installation, tenant)
        assert installation.ended(tenant, run).attempt == 1
    assert installation.processes["w1"].poll() is None
    log = installation.log("w1")
    assert log.count("w1@test ready.") == 1
    assert "Connection to broker lost" not in log
    assert_invariants(installation)


def test_a_key_of_the_wrong_type_in_place_of_a_queue_is_put_aside(
    installation: Installation, tenant: Principal
) -> None:
    installation.start_dispatcher()
    with closing(redis.Redis.from_url(installation.redis_url, decode_responses=True)) as client:
        client.set(QUEUE, "there before the worker")
        installation.start_worker("w1")
        (run,) = _trigger(installation, tenant)
        assert installation.ended(tenant, run).attempt == 1
        assert client.get(names.put_aside(QUEUE)) == "there before the worker"
        client.set(QUEUE, "while it reads")
        (run,) = _trigger(installation, tenant)
        assert installation.ended(tenant, run).attempt == 1
        assert client.get(names.put_aside(QUEUE)) == "while it reads"
        client.delete(names.put_aside(QUEUE))
    assert installation.processes["w1"].poll() is None
    eventually(lambda: installation.rows("SELECT total FROM refused_counts WHERE reason = 'type'") == [(2,)])
    assert_invariants(installation)


def test_row_37_a_flood_of_garbage_leaves_room_for_real_work(
    installation: Installation, tenant: Principal, other_tenant: Principal, tier: Tier
) -> None:
    """Two slots that wait for 0.2 s at a time: counted in spans of time by turns without the flood and with it."""
    installation.start_dispatcher()
    installation.start_worker()
    rounds, seconds = tier((2, 2), (5, 4))
    installation.trigger_many(
        tenant, [TriggerRequest("diagnostics.sleep", {"seconds": 0.2})] * (rounds * seconds * 2 * 10 + 20)
    )
    released = Release(tenant.tenant, ids.new(), WRITE.task_name, QUEUE, 1)
    elements = messages.falsified(Pen(installation), released, other_tenant.tenant, QUEUE)
    garbage = itertools.cycle([bad.element for bad in elements if bad.reason not in {"stale", "size"}])
    eventually(lambda: _ended(installation) > 4)
    counts = {False: 0, True: 0}
    sent = 0
    with closing(redis.Redis.from_url(installation.redis_url)) as client:
        for flooded in [False, True] * rounds:
            before, began = _ended(installation), time.monotonic()
            for tenth in range(seconds * 10):
                if flooded:
                    client.lpush(QUEUE, *itertools.islice(garbage, 100))
                    sent += 100
                threading.Event().wait(began + (tenth + 1) / 10 - time.monotonic())  # Ten pieces a second.
            counts[flooded] += _ended(installation) - before
        assert installation.processes["w1"].poll() is None
        _all_are_read(installation)
    # Rates are compared where the machine is this test's alone: the quick form asks that work goes on at all.
    assert counts[True] >= tier(1, counts[False] / 2), counts
    # What a worker had asked for when it gave its connection up is lost, and nobody counts it.
    with suppress(AssertionError):
        eventually(lambda: _refused(installation) >= 0.9 * sent)
    assert 0.9 * sent <= _refused(installation) <= sent
    assert_invariants(installation, 120)


def _refused(installation: Installation) -> int:
    """But for real messages that came twice, as after a wait in a queue that garbage fills."""
    statement = "SELECT total FROM refused_counts WHERE reason <> 'stale'"
    return sum(total for (total,) in installation.rows(statement))


def _ended(installation: Installation) -> int:
    ((count,),) = installation.rows("SELECT count(*) FROM runs WHERE state = 'SUCCEEDED'")
    return int(count)
