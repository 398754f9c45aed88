"""What is released under limits and pauses: real PostgreSQL, a real broker, and workers that have room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
import redis

from tasks.engine import limits, publish, runs, switches
from tasks.engine.admission import LimitKind
from tasks.engine.costs import Costs
from tasks.engine.fleet import Fleet
from tasks.engine.ledger import NotLeading, Settlement
from tasks.engine.limits import LimitRequest
from tasks.engine.lines import Candidate, Line
from tasks.engine.publish import Bell, Ended
from tasks.engine.release import Releases
from tasks.engine.runs import TriggerRequest
from tasks.engine.states import RunState
from tenants.context import ActorKind, Principal
from tests.support.hands import WORKER, Hands
from tests.support.installations import Installation, eventually

CAP = LimitRequest("cap", LimitKind.CONCURRENCY, 2)
ECHO, WRITE = "diagnostics.echo", "diagnostics.write"
MARK = {"key": "k", "value": "v"}
_MANY_LINES = """
INSERT INTO runs (tenant_id, id, task, queue, args, priority, rank, state, max_attempts, concurrency_key, actor_kind,
                  actor, available_at)
SELECT tenants.id, gen_random_uuid(), %s, 'diagnostics', '{}', 5, now(), 'QUEUED', 1, 'key-' || n / 5, 'API_KEY', 'a',
       now()
FROM tenants, generate_series(1, 15000) n WHERE tenants.id = %s
"""
"""3,000 lines of five runs."""
_REPORT = "SELECT worker_seen(%s, %s, %s, 0, 0, false, false)"
"""Name, queues, slots."""
Lead = Callable[[], Releases]


@pytest.fixture
def costs() -> Costs:
    """What runs are expected to take: nothing is known."""
    return Costs()


@pytest.fixture
def lead(installation: Installation, hands: Hands, costs: Costs) -> Iterator[Lead]:
    """Takes over the release, with nothing known; ten slots that consume the queue are live."""
    engine = installation.settings.engine
    broker = publish.connect(installation.redis_url, timeout_seconds=1)
    broker.flushdb()
    installation.rows("UPDATE runs SET state = 'CANCELLED' WHERE state IN ('QUEUED', 'SCHEDULED', 'RELEASED')")
    installation.rows("DELETE FROM run_leases")
    installation.rows("DELETE FROM workers")
    hands.app.call(_REPORT, WORKER, ["diagnostics"], 10)
    installation.rows("UPDATE workers SET last_seen = now() + interval '1 hour'")
    yield lambda: Releases(hands.system, broker, engine, hands.epoch, costs)
    broker.close()


def _released(releases: Releases) -> list[UUID]:
    releases.read()
    return [change.run for change in releases.release()]


def _all(releases: Releases, number: int) -> Callable[[], list[UUID]]:
    """Asks for releases until there are so many of them."""
    gathered: list[UUID] = []

    def ask() -> list[UUID]:
        gathered.extend(change.run for change in releases.release())
        return gathered if len(gathered) >= number else []

    return ask


def _ended(hands: Hands, tenant: Principal, run: UUID) -> Ended:
    """Let a worker do the run, for as long as is expected of what nobody knows; the bell it rings then."""
    [(fence,)] = hands.system.call("SELECT fence FROM runs WHERE id = %s", run)
    claim = hands.claim(tenant, run, fence)
    assert claim is not None
    assert not claim.held
    return _done(hands, tenant, run, fence)


def _done(hands: Hands, tenant: Principal, run: UUID, fence: int) -> Ended:
    """Let a worker end the run that it has claimed; the bell it rings then."""
    hands.settle(tenant, run, fence, Settlement(RunState.SUCCEEDED))
    return Ended(run, fence, 1.0)


def _second_worker(installation: Installation, hands: Hands, queue: str) -> None:
    """One more live worker, with one slot."""
    hands.app.call(_REPORT, "w2", [queue], 1)
    installation.rows("UPDATE workers SET last_seen = now() + interval '1 hour'")


def test_a_cap_binds_what_waits_already_and_nobody_else(
    installation: Installation, hands: Hands, lead: Lead, tenant: Principal, other_tenant: Principal
) -> None:
    mine = [installation.trigger(tenant, ECHO) for _ in range(5)]
    installation.write(tenant, limits.put, CAP)
    others = [installation.trigger(other_tenant, ECHO) for _ in range(3)]
    releases = lead()
    first = _released(releases)
    assert set(first) == {*mine[:2], *others}
    assert _released(releases) == []
    releases.hear(_ended(hands, tenant, mine[0]))
    assert [change.run for change in releases.release()] == [mine[2]]
    installation.write(tenant, limits.put, replace(CAP, amount=3))
    assert _released(releases) == [mine[3]]
    [cap] = installation.write(tenant, limits.every)
    installation.write(tenant, limits.remove, cap.id)
    assert _released(releases) == [mine[4]]


def test_a_capped_task_and_a_capped_key_do_not_hold_up_the_tenants_others(
    installation: Installation, lead: Lead, tenant: Principal
) -> None:
    installation.write(tenant, limits.put, replace(CAP, amount=1, task_name="echo"))
    installation.write(tenant, limits.put, replace(CAP, name="each", amount=1, concurrency_key="*"))
    echoes = [installation.trigger(tenant, ECHO, priority=9) for _ in range(3)]
    keyed = [installation.trigger(tenant, WRITE, MARK, concurrency_key="k", priority=9) for _ in range(3)]
    free = [installation.trigger(tenant, WRITE, MARK, priority=0) for _ in range(3)]
    assert set(_released(lead())) == {echoes[0], keyed[0], *free}


def test_the_next_leader_counts_what_runs_and_goes_on_with_the_rates(
    installation: Installation, hands: Hands, lead: Lead, tenant: Principal, other_tenant: Principal
) -> None:
    installation.write(tenant, limits.put, CAP)
    installation.write(other_tenant, limits.put, LimitRequest("rate", LimitKind.RATE, 1, 3600, 2))
    for _ in range(5):
        installation.trigger(tenant, ECHO)
        installation.trigger(other_tenant, ECHO)
    assert len(_released(lead())) == 4
    assert _released(lead()) == []
    [(used,)] = [tuple(installation.write(other_tenant, limits.used).values())]
    assert used == 2


def test_where_workers_do_not_claim_in_time_less_is_released_ahead_of_them(
    installation: Installation, lead: Lead, costs: Costs, tenant: Principal
) -> None:
    first = installation.trigger_many(tenant, [TriggerRequest(ECHO)] * 30)
    costs.learn(runs.line(installation.run(tenant, first[0])), 0.001)
    releases = lead()
    releases.read()
    released = releases.release()
    assert len(released) == 30
    for _ in range(10):
        releases.unclaimed(released[:1])
    later = installation.trigger(tenant, ECHO)
    assert _released(releases) == []
    assert eventually(lambda: _released(releases)) == [later]


def test_what_was_not_claimed_has_used_nothing(
    installation: Installation, hands: Hands, lead: Lead, tenant: Principal, other_tenant: Principal
) -> None:
    installation.trigger_many(tenant, [TriggerRequest(ECHO)] * 30)
    releases = lead()
    assert len(_released(releases)) == 10
    others = installation.trigger_many(other_tenant, [TriggerRequest(ECHO)] * 30)
    lost = hands.requeue()
    releases.unclaimed(lost)
    releases.queued(lost)
    assert len(set(_released(releases)) & set(others)) == 5


def test_a_tenant_whose_rates_are_not_known_yet_keeps_its_turn(
    installation: Installation, lead: Lead, tenant: Principal, other_tenant: Principal
) -> None:
    installation.write(tenant, limits.put, LimitRequest("rate", LimitKind.RATE, 1000, 1, 1000))
    installation.write(tenant, limits.put, LimitRequest("each", LimitKind.RATE, 1000, 1, 1000, concurrency_key="*"))
    for principal in (tenant, other_tenant):
        requests = [TriggerRequest(ECHO, concurrency_key=f"k{number}") for number in range(30)]
        installation.trigger_many(principal, requests)
    releases = lead()
    releases.read()
    owners = [change.tenant for change in releases.release()]
    assert owners.count(tenant.tenant) == owners.count(other_tenant.tenant) == 5


def test_a_rate_made_faster_binds_at_once_also_the_next_leader(
    installation: Installation, lead: Lead, tenant: Principal
) -> None:
    daily = LimitRequest("rate", LimitKind.RATE, 1, 86400)
    installation.write(tenant, limits.put, daily)
    first = installation.trigger(tenant, ECHO)
    assert _released(lead()) == [first]
    releases = lead()
    assert _released(releases) == []
    installation.write(tenant, limits.put, replace(daily, amount=1000, per_seconds=1))
    run = installation.trigger(tenant, ECHO)
    assert eventually(lambda: _released(releases)) == [run]


def test_the_reports_of_workers_leave_their_pools_where_they_are(installation: Installation, hands: Hands) -> None:
    """With every report a row changes its place; the orders of pools that were other ones would be forgotten."""
    installation.rows("DELETE FROM workers")
    workers = [("w1", ["diagnostics"]), ("w2", ["operator"]), ("w3", ["analytics", "maintenance"])]
    fleet = Fleet(0.05, Costs())
    found = []
    for round_ in range(12):
        for name, queues in (*workers[round_ % 3 :], *workers[: round_ % 3])[: 3 if round_ == 0 else 1]:
            hands.app.call(_REPORT, name, queues, 1)
        fleet.read(hands.system, alive_seconds=3600)
        found.append([sorted(pool.queues) for pool in fleet.pools()])
    assert found == [found[0]] * len(found)


def test_a_run_does_not_take_the_room_of_a_slot_that_it_cannot_have(
    installation: Installation, hands: Hands, lead: Lead, tenant: Principal, other_tenant: Principal
) -> None:
    """One worker of both queues is at work, the other, of one queue, is free."""
    installation.rows("UPDATE workers SET slots = 1, queues = '{diagnostics,analytics}'")
    releases = lead()
    both = installation.trigger(other_tenant, ECHO)
    assert _released(releases) == [both]
    [(fence,)] = hands.system.call("SELECT fence FROM runs WHERE id = %s", both)
    hands.claim(other_tenant, both, fence)
    _second_worker(installation, hands, "diagnostics")
    elsewhere = installation.trigger(tenant, ECHO, queue="analytics", priority=9)
    here = installation.trigger(other_tenant, ECHO)
    assert _released(releases) == [here]
    releases.hear(_done(hands, other_tenant, both, fence))
    assert elsewhere in _released(releases)


def test_a_rate_opens_by_itself(installation: Installation, lead: Lead, tenant: Principal) -> None:
    installation.write(tenant, limits.put, LimitRequest("rate", LimitKind.RATE, 20))
    runs = [installation.trigger(tenant, ECHO) for _ in range(4)]
    releases = lead()
    found = _released(releases)
    assert found == runs[:1]
    assert 0 < releases.pause() <= 0.05
    assert found + eventually(_all(releases, 3), every=0.005) == runs


def test_pauses_are_passed_over_until_they_end(
    installation: Installation, lead: Lead, tenant: Principal, other_tenant: Principal
) -> None:
    releases = lead()
    _released(releases)
    installation.write(tenant, switches.pause)
    installation.write(other_tenant, switches.pause, "echo", "a note")
    mine = installation.trigger(tenant, ECHO)
    echo = installation.trigger(other_tenant, ECHO)
    write = installation.trigger(other_tenant, WRITE, MARK)
    assert _released(releases) == [write]
    assert _released(releases) == []
    installation.write(tenant, switches.resume)
    assert _released(releases) == [mine]
    installation.write(other_tenant, switches.resume, "echo")
    assert _released(releases) == [echo]


def test_a_suspended_tenant_starts_nothing_and_the_rest_goes_on(
    installation: Installation, lead: Lead, tenant: Principal, other_tenant: Principal
) -> None:
    releases = lead()
    mine, other = installation.trigger(tenant, ECHO), installation.trigger(other_tenant, ECHO)
    installation.rows("UPDATE tenants SET suspended_at = now() WHERE id = %s", str(tenant.tenant))
    assert _released(releases) == [other]
    installation.rows("UPDATE tenants SET suspended_at = NULL WHERE id = %s", str(tenant.tenant))
    assert _released(releases) == [mine]


def test_what_the_broker_refuses_is_released_again_and_has_used_up_nothing(
    installation: Installation, hands: Hands, lead: Lead, tenant: Principal
) -> None:
    installation.write(tenant, limits.put, CAP)
    installation.write(tenant, limits.put, LimitRequest("rate", LimitKind.RATE, 1, 3600, 2))
    runs = [installation.trigger(tenant, ECHO) for _ in range(3)]
    releases = lead()
    with redis.Redis.from_url(installation.redis_url) as broker:
        broker.set("diagnostics", "no list")
        assert set(_released(releases)) == set(runs[:2])
        assert {installation.run(tenant, run).state for run in runs} == {"QUEUED"}
        broker.delete("diagnostics")
    assert releases.pause() <= 0.5
    assert set(eventually(_all(releases, 2))) == set(runs[:2])
    [message] = installation.rows("SELECT count(*) FROM runs WHERE state = 'RELEASED'")
    assert message == (2,)


def test_weights_share_the_workers(
    installation: Installation, hands: Hands, lead: Lead, tenant: Principal, other_tenant: Principal
) -> None:
    operator = replace(tenant, kind=ActorKind.OPERATOR, actor="tests")
    installation.write(operator, limits.put, LimitRequest("share", LimitKind.WEIGHT, 4))
    for principal in (tenant, other_tenant):
        installation.trigger_many(principal, [TriggerRequest(ECHO)] * 60)
    releases = lead()
    order = _released(releases)
    owners = dict(installation.rows("SELECT id, tenant_id FROM runs"))
    by_id = {principal.tenant: principal for principal in (tenant, other_tenant)}
    for run in order:
        releases.hear(_ended(hands, by_id[owners[run]], run))
        order += [change.run for change in releases.release()]
        if len(order) >= 60:
            break
    mine = sum(owners[run] == tenant.tenant for run in order[10:60])
    assert 38 <= mine <= 42, "four of five turns"


def test_a_release_under_an_old_epoch_changes_nothing(
    installation: Installation, hands: Hands, lead: Lead, tenant: Principal
) -> None:
    run = installation.trigger(tenant, ECHO)
    releases = lead()
    releases.read()
    installation.rows("UPDATE dispatcher_leader SET epoch = epoch + 1")
    with pytest.raises(NotLeading):
        releases.release()
    installation.rows("UPDATE dispatcher_leader SET epoch = epoch - 1")
    assert installation.run(tenant, run).state == "QUEUED"


def test_a_bell_that_names_its_run_is_enough_and_a_lost_one_is_made_up_for(
    installation: Installation, lead: Lead, tenant: Principal
) -> None:
    releases = lead()
    assert _released(releases) == []
    told, untold = installation.trigger(tenant, ECHO), installation.trigger(tenant, WRITE, MARK)
    row = installation.run(tenant, told)
    bell = Bell(runs.line(row), Candidate(row.rank, told, runs.line(row)))
    for _ in range(2):
        releases.hear(bell)
    assert [change.run for change in releases.release()] == [told]
    releases.hear(bell)  # One that comes late tells of nothing any more.
    assert releases.release() == []
    assert _released(releases) == [untold]


def test_a_bell_with_a_false_line_gets_nobody_past_a_limit(
    installation: Installation, lead: Lead, tenant: Principal
) -> None:
    installation.write(tenant, limits.put, replace(CAP, amount=1, task_name="echo"))
    releases = lead()
    first, second = (installation.trigger(tenant, ECHO) for _ in range(2))
    assert _released(releases) == [first]
    false = Line(tenant.tenant, "diagnostics", WRITE, None)
    releases.hear(Bell(false, Candidate(installation.run(tenant, second).rank, second, false)))
    assert releases.release() == []
    assert installation.run(tenant, second).state == "QUEUED"
    assert installation.states(first).count("RELEASED") == 1


def test_in_a_long_line_a_bell_is_taken_only_for_what_comes_before_its_known_front(
    installation: Installation, lead: Lead, tenant: Principal
) -> None:
    installation.trigger_many(tenant, [TriggerRequest(ECHO)] * 100)
    releases = lead()
    assert len(_released(releases)) == 10
    late, urgent = (installation.run(tenant, installation.trigger(tenant, ECHO, priority=p)) for p in (0, 9))
    for row in (late, urgent):
        releases.hear(Bell(runs.line(row), Candidate(row.rank, row.id, runs.line(row))))
    installation.rows("UPDATE workers SET slots = 12")
    assert _released(releases)[0] == urgent.id


def test_what_no_live_worker_knows_is_not_released_until_one_does(
    installation: Installation, hands: Hands, tenant: Principal, lead: Lead
) -> None:
    unknown, known = (installation.trigger(tenant, task, MARK if task == WRITE else {}) for task in (ECHO, WRITE))
    installation.rows("UPDATE workers SET tasks = %s", [WRITE])
    releases = lead()
    assert _released(releases) == [known]
    row = installation.run(tenant, unknown)
    releases.hear(Bell(runs.line(row), Candidate(row.rank, unknown, runs.line(row))))
    assert releases.release() == []
    assert _released(releases) == []
    other = "w2@by-hand"
    hands.app.call(
        "SELECT worker_seen(%s, %s, %s, %s, %s, %s, %s, %s)", other, ["diagnostics"], 0, 0, 0, False, True, [ECHO]
    )
    assert _released(releases) == [], "it takes nothing any more"
    installation.rows("UPDATE workers SET slots = 1 WHERE name = %s", other)
    assert _released(releases) == [unknown]
    installation.rows("DELETE FROM workers WHERE name = %s", other)


@pytest.fixture
def read(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each of the dispatcher's statements has returned."""
    counts: list[int] = []
    call = hands.system.call

    def counted(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        rows = call(statement, *values)
        counts.append(len(rows))
        return rows

    monkeypatch.setattr(hands.system, "call", counted)
    return counts


def test_a_round_is_short_however_much_waits_and_bells_are_heard_meanwhile(
    installation: Installation,
    hands: Hands,
    lead: Lead,
    tenant: Principal,
    other_tenant: Principal,
    read: list[int],
) -> None:
    installation.rows(_MANY_LINES, ECHO, str(tenant.tenant))
    releases = lead()
    first = _released(releases)
    assert len(first) == 10
    late = installation.trigger(other_tenant, ECHO)
    releases.hear(Bell(Line(other_tenant.tenant, "diagnostics", ECHO, None)))
    releases.hear(_ended(hands, tenant, first[0]))
    assert [change.run for change in releases.release()] == [late]
    assert sum(read) < 10_000


def test_a_round_is_short_when_all_that_was_known_has_been_cancelled(
    installation: Installation, hands: Hands, lead: Lead, tenant: Principal, other_tenant: Principal, read: list[int]
) -> None:
    installation.rows(_MANY_LINES, ECHO, str(tenant.tenant))
    releases = lead()
    first = _released(releases)
    late = installation.trigger(other_tenant, ECHO)
    installation.rows("UPDATE runs SET state = 'CANCELLED' WHERE state = 'QUEUED' AND id <> %s", late)
    for run in first:
        releases.hear(_ended(hands, tenant, run))
    read.clear()
    assert releases.release() == []
    assert len(read) <= 4
    releases.hear(Bell(Line(other_tenant.tenant, "diagnostics", ECHO, None)))
    assert [change.run for change in eventually(releases.release)] == [late]


def test_what_the_dispatcher_itself_has_queued_waits_for_no_survey(
    installation: Installation, hands: Hands, lead: Lead, tenant: Principal, other_tenant: Principal
) -> None:
    """However many lines of others there are to be looked through."""
    installation.write(tenant, switches.pause)
    releases = lead()
    _released(releases)
    installation.rows(_MANY_LINES, ECHO, str(tenant.tenant))
    due = installation.trigger(other_tenant, ECHO, delay_seconds=60)
    hands.due(due)
    releases.queued(hands.requeue(unclaimed_seconds=3600))
    assert [change.run for change in releases.release()] == [due]


def test_the_rates_of_a_million_keys_are_read_as_they_are_needed(
    installation: Installation, lead: Lead, tenant: Principal, other_tenant: Principal, read: list[int]
) -> None:
    rate = installation.write(tenant, limits.put, LimitRequest("each", LimitKind.RATE, 1, 3600, concurrency_key="*"))
    installation.rows(
        "INSERT INTO limit_states SELECT %s, %s, 'k' || n, extract(epoch FROM now()) + 3600"
        " FROM generate_series(1, 20000) n",
        str(tenant.tenant), str(rate.id),
    )  # fmt: skip
    used, free = (installation.trigger(tenant, ECHO, concurrency_key=key) for key in ("k7", "new"))
    other = installation.trigger(other_tenant, ECHO)
    releases = lead()
    assert set(_released(releases)) == {free, other}
    assert sum(read) < 100
    told = installation.run(tenant, installation.trigger(tenant, ECHO, concurrency_key="k8"))
    releases.hear(Bell(runs.line(told), Candidate(told.rank, told.id, runs.line(told))))
    assert releases.release() == []
    assert installation.run(tenant, used).state == "QUEUED"
