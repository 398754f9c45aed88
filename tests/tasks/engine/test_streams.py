"""Live updates: in order, without a gap, also where Redis loses what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from uuid import UUID

import pytest
import pytest_asyncio
import redis
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tasks.engine import positions, publish, runs, streams
from tasks.engine.feeds import Update
from tasks.engine.filters import RunFilter
from tasks.engine.ledger import Change
from tasks.engine.positions import Page, Position
from tasks.engine.states import RunState
from tasks.engine.streams import Hub
from tenants import ids, names
from tenants.context import Principal, Scope
from tenants.db import AsyncDatabase
from tenants.errors import InvalidInput, NotFound
from tests.support.installations import Installation

_LOCK = 8


@pytest.fixture(scope="module", autouse=True)
def _processes(installation: Installation) -> Iterator[None]:
    installation.start_dispatcher()
    installation.start_worker()
    installation.lead()
    yield
    installation.stop()


@pytest_asyncio.fixture
async def database(installation: Installation) -> AsyncIterator[AsyncDatabase]:
    opened = AsyncDatabase(installation.settings.database)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def patient_database(installation: Installation) -> AsyncIterator[AsyncDatabase]:
    """One whose callers wait for long, each for its tenant's share."""
    patience = {"pool_wait_seconds": 60.0, "statement_seconds": 60.0}
    opened = AsyncDatabase(installation.settings.database.model_copy(update=patience))
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def hub(installation: Installation) -> AsyncIterator[Hub]:
    made = Hub(installation.settings)
    made.start()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def deaf_hub(installation: Installation) -> AsyncIterator[Hub]:
    """A hub whose Redis is not there."""
    settings = installation.settings
    made = Hub(
        settings.model_copy(update={"redis": settings.redis.model_copy(update={"api_url": "redis://127.0.0.1:1/0"})})
    )
    made.start()
    yield made
    await made.close()


def _wait_for_lock(session: Session) -> None:
    session.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def scope_of(database: AsyncDatabase, principal: Principal) -> Scope:
    async def ring(notices: list[object]) -> None:
        raise AssertionError(notices)

    return Scope(principal, database, ring)


async def collect(updates: AsyncIterator[Update], seconds: float = 20) -> list[Update]:
    async with asyncio.timeout(seconds):
        return [update async for update in updates]


def changes(updates: list[Update]) -> list[tuple[int | None, str | None]]:
    return [(update.sequence, update.state) for update in updates if update.kind != "PROGRESS"]


async def begun(installation: Installation, tenant: Principal, updates: AsyncIterator[Update]) -> AsyncIterator[Update]:
    """A subscription that is in place: it has told of a run that waits for longer than any test."""
    waiting = await asyncio.to_thread(
        installation.trigger, tenant, "diagnostics.echo", {"value": 0}, delay_seconds=3600
    )
    first = await anext(updates)
    assert (first.kind, first.run_id) == ("SNAPSHOT", waiting)
    return updates


def many_events(installation: Installation, tenant: Principal, count: int, state: str = "SCHEDULED") -> set[UUID]:
    """So many runs with an event each, written by one transaction that knows nothing of Redis."""
    made = {ids.new() for _ in range(count)}
    installation.rows(
        "INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt)"
        " SELECT %s, id, 1, %s, 0 FROM unnest(%s::uuid[]) id",
        str(tenant.tenant), state, [str(run) for run in made],
    )  # fmt: skip
    return made


@pytest.mark.parametrize("which", ["hub", "deaf_hub"])
async def test_a_run_is_followed_to_its_end(
    which: str,
    request: pytest.FixtureRequest,
    installation: Installation,
    database: AsyncDatabase,
    tenant: Principal,
    hub: Hub,
    deaf_hub: Hub,
) -> None:
    follower = {"hub": hub, "deaf_hub": deaf_hub}[which]
    run = await asyncio.to_thread(
        installation.trigger, tenant, "diagnostics.sleep", {"seconds": 1.5, "steps": 5}, delay_seconds=1
    )
    updates = await collect(follower.follow(scope_of(database, tenant), run))
    assert updates[0].kind == "SNAPSHOT"
    assert changes(updates) == [
        (1, "SCHEDULED"), (2, "QUEUED"), (3, "RELEASED"), (4, "RUNNING"), (5, "SUCCEEDED"),
    ]  # fmt: skip
    if which == "hub":
        told = [update.progress for update in updates if update.kind == "PROGRESS"]
        assert told
        assert told[0] is not None
        assert told[0][1] == 5


async def test_of_a_run_however_short_the_last_progress_is_told_before_its_end(
    installation: Installation, database: AsyncDatabase, tenant: Principal, hub: Hub
) -> None:
    for _ in range(5):
        run = await asyncio.to_thread(
            installation.trigger, tenant, "diagnostics.sleep", {"seconds": 0.01, "steps": 5}, delay_seconds=0.2
        )
        *_, last, end = await collect(hub.follow(scope_of(database, tenant), run))
        assert (last.kind, last.state, last.progress) == ("PROGRESS", "RUNNING", (5, 5, None))
        assert (end.kind, end.state) == ("CHANGE", "SUCCEEDED")


async def test_a_resumed_subscription_gets_what_it_missed_and_nothing_is_skipped(
    installation: Installation, database: AsyncDatabase, tenant: Principal, hub: Hub
) -> None:
    scope = scope_of(database, tenant)
    run = await asyncio.to_thread(installation.trigger, tenant, "diagnostics.echo", {"value": 1}, delay_seconds=1.5)
    following = hub.follow(scope, run)
    first = await anext(following)
    await following.aclose()  # type: ignore[attr-defined]
    await asyncio.to_thread(installation.ended, tenant, run)
    later = await collect(hub.follow(scope, run, first.cursor))
    assert changes(later) == [(2, "QUEUED"), (3, "RELEASED"), (4, "RUNNING"), (5, "SUCCEEDED")]
    again = await collect(hub.follow(scope, run, later[-1].cursor))
    assert changes(again)[-1] == (5, "SUCCEEDED")


async def test_all_runs_of_the_tenant_are_followed_and_no_other_tenants(
    installation: Installation, database: AsyncDatabase, tenant: Principal, other_tenant: Principal, hub: Hub
) -> None:
    mine = await begun(installation, tenant, hub.follow(scope_of(database, tenant), RunFilter()))
    foreign = await asyncio.to_thread(installation.trigger, other_tenant, "diagnostics.echo", {"value": "theirs"})
    run = await asyncio.to_thread(installation.trigger, tenant, "diagnostics.echo", {"value": "mine"})
    await asyncio.to_thread(installation.ended, other_tenant, foreign)
    updates: list[Update] = []
    async with asyncio.timeout(20):
        while not updates or updates[-1].state != RunState.SUCCEEDED:
            updates.append(await anext(mine))
    assert {update.run_id for update in updates} == {run}
    assert changes(updates) == [(1, "QUEUED"), (2, "RELEASED"), (3, "RUNNING"), (4, "SUCCEEDED")]


async def test_a_filter_by_state_begins_where_a_run_comes_to_match(
    installation: Installation, database: AsyncDatabase, tenant: Principal, hub: Hub
) -> None:
    states = [RunState.SCHEDULED, RunState.FAILED]
    failures = await begun(installation, tenant, hub.follow(scope_of(database, tenant), RunFilter(states=states)))
    await asyncio.to_thread(installation.trigger, tenant, "diagnostics.echo", {"value": 1})
    bad = await asyncio.to_thread(
        installation.trigger, tenant, "diagnostics.fail", {"message": "no", "retryable": False}
    )
    async with asyncio.timeout(20):
        update = await anext(failures)
    assert update.run_id == bad


async def test_another_tenants_run_and_cursor_are_not_found(
    installation: Installation, database: AsyncDatabase, tenant: Principal, other_tenant: Principal, hub: Hub
) -> None:
    run = await asyncio.to_thread(installation.trigger, tenant, "diagnostics.echo", {"value": 1})
    await asyncio.to_thread(installation.ended, tenant, run)
    with pytest.raises(NotFound):
        await collect(hub.follow(scope_of(database, other_tenant), run))
    cursor = (await collect(hub.follow(scope_of(database, tenant), run)))[0].cursor
    with pytest.raises(InvalidInput):
        await collect(hub.follow(scope_of(database, other_tenant), RunFilter(), cursor))
    with pytest.raises(InvalidInput):
        await collect(hub.follow(scope_of(database, tenant), run, cursor[:-2] + "xx"))


async def test_a_cursor_of_another_database_is_answered_with_a_reset(
    installation: Installation, database: AsyncDatabase, tenant: Principal, hub: Hub
) -> None:
    run = await asyncio.to_thread(installation.trigger, tenant, "diagnostics.echo", {"value": 1})
    await asyncio.to_thread(installation.ended, tenant, run)
    foreign = positions.seal(installation.settings.auth.token_keys, tenant.tenant, Position("1:1:", "elsewhere"))
    updates = await collect(hub.follow(scope_of(database, tenant), run, foreign))
    assert [update.kind for update in updates] == ["RESET", "SNAPSHOT"]


async def test_pages_of_the_ledger_are_of_one_moment_and_hold_every_event_once(
    installation: Installation, database: AsyncDatabase, tenant: Principal
) -> None:
    scope = scope_of(database, tenant)
    position = (await scope.read(positions.snapshot, RunFilter())).position
    before = await asyncio.to_thread(many_events, installation, tenant, 50)
    page: Page | None = None
    read: list[UUID] = []
    after: set[UUID] = set()
    while page is None or page.rest is not None:
        page = await scope.read(positions.since, position, page, most=20)
        read += [event.run for event in page.events]
        after |= await asyncio.to_thread(many_events, installation, tenant, 5)
    assert sorted(read) == sorted(before)
    rest = await scope.read(positions.since, page.upto)
    assert {event.run for event in rest.events} == after


@pytest.mark.parametrize("which", ["hub", "deaf_hub"])
async def test_more_events_than_a_subscriber_has_room_for_are_all_told_once(
    which: str,
    request: pytest.FixtureRequest,
    installation: Installation,
    patient_database: AsyncDatabase,
    tenant: Principal,
    hub: Hub,
    deaf_hub: Hub,
) -> None:
    follower = {"hub": hub, "deaf_hub": deaf_hub}[which]
    updates = await begun(installation, tenant, follower.follow(scope_of(patient_database, tenant), RunFilter()))
    made = await asyncio.to_thread(many_events, installation, tenant, 12_000, "CANCELLED")
    notices = [Change(tenant.tenant, run, "CANCELLED", 1, 0, datetime.now(UTC)) for run in made]
    with closing(redis.Redis.from_url(installation.redis_url)) as client:
        assert await asyncio.to_thread(publish.send, client, notices, 10_000)
    told: list[UUID | None] = []
    async with asyncio.timeout(60):
        while len(told) < len(made):
            told.append((await anext(updates)).run_id)
        for _ in range(3):  # So many polls have passed since.
            [last] = await asyncio.to_thread(many_events, installation, tenant, 1)
            assert (await anext(updates)).run_id == last
    assert set(told) == made


async def test_who_missed_too_much_begins_anew(
    installation: Installation, database: AsyncDatabase, tenant: Principal, hub: Hub
) -> None:
    scope = scope_of(database, tenant)
    run = await asyncio.to_thread(installation.trigger, tenant, "diagnostics.echo", {"value": 1}, delay_seconds=3600)
    first = await anext(hub.follow(scope, RunFilter()))
    await asyncio.to_thread(many_events, installation, tenant, 10_001)
    async with asyncio.timeout(20):
        resumed = hub.follow(scope, RunFilter(), first.cursor)
        begins = [await anext(resumed), await anext(resumed)]
    assert [(update.kind, update.run_id) for update in begins] == [("RESET", None), ("SNAPSHOT", run)]


async def test_a_run_that_has_ended_is_told_once_more_though_only_others_have_changed_since(
    installation: Installation, database: AsyncDatabase, tenant: Principal, hub: Hub
) -> None:
    scope = scope_of(database, tenant)
    run = await asyncio.to_thread(installation.trigger, tenant, "diagnostics.echo", {"value": 1})
    await asyncio.to_thread(installation.ended, tenant, run)
    [ended] = await collect(hub.follow(scope, run))
    await asyncio.to_thread(many_events, installation, tenant, 1)
    again = await collect(hub.follow(scope, run, ended.cursor))
    assert [(update.kind, update.state) for update in again] == [("SNAPSHOT", "SUCCEEDED")]


async def test_a_tenant_whose_sessions_are_all_taken_delays_no_others_updates(
    installation: Installation,
    patient_database: AsyncDatabase,
    tenant: Principal,
    other_tenant: Principal,
    deaf_hub: Hub,
) -> None:
    following = [
        await begun(installation, who, deaf_hub.follow(scope_of(patient_database, who), RunFilter()))
        for who in (other_tenant, tenant)
    ]
    with installation.locked(_LOCK):
        taken = [
            asyncio.ensure_future(scope_of(patient_database, other_tenant).read(_wait_for_lock))
            for _ in range(installation.settings.database.pool_size // 4)
        ]
        async with asyncio.timeout(20):
            for _ in range(2):  # The second comes after a poll that had the other tenant to ask.
                [made] = await asyncio.to_thread(many_events, installation, tenant, 1)
                assert (await anext(following[1])).run_id == made
    await asyncio.gather(*taken)


CORRUPT = [
    b"no json",
    b"{}",
    b"[[]]",
    b'[{"k":"C","r":7,"s":2,"st":"QUEUED","a":1,"t":"2026-01-01T00:00:00+00:00"}]',
    b'[{"k":"C","r":"%s","s":99999999999,"st":"QUEUED","a":1,"t":"2026-01-01T00:00:00+00:00"}]',
    b'[{"k":"C","r":"%s","s":"x","st":"QUEUED","a":1,"t":"2026-01-01T00:00:00+00:00"}]',
    b'[{"k":"C","r":"%s","s":2,"st":"LOST","a":1,"t":"2026-01-01T00:00:00+00:00"}]',
    b'[{"k":"C","r":"%s","s":2,"st":"QUEUED","a":"x","t":"2026-01-01T00:00:00+00:00"}]',
    b'[{"k":"C","r":"%s","s":2,"st":"QUEUED","a":1,"t":"today"}]',
    b'[{"k":"P","r":"%s","p":["x",2,"y"]}]',
    b'[{"k":"P","r":"%s","p":[1,2,3]}]',
    b'[{"k":"P","r":"%s","p":1}]',
]


async def test_entries_that_are_corrupt_are_passed_over(
    installation: Installation, database: AsyncDatabase, tenant: Principal, hub: Hub
) -> None:
    run = await asyncio.to_thread(installation.trigger, tenant, "diagnostics.echo", {"value": 1}, delay_seconds=3600)
    following = hub.follow(scope_of(database, tenant), run)
    assert (await anext(following)).kind == "SNAPSHOT"
    with closing(redis.Redis.from_url(installation.redis_url)) as client:
        for entry in CORRUPT:
            client.xadd(names.stream(tenant.tenant), {b"u": entry.replace(b"%s", run.hex.encode())})
    await asyncio.to_thread(installation.write, tenant, runs.cancel, run)
    assert changes(await collect(following)) == [(2, "CANCELLED")]


async def test_a_key_that_is_no_stream_slows_its_own_tenant_only(
    installation: Installation,
    patient_database: AsyncDatabase,
    tenant: Principal,
    other_tenant: Principal,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "_POLL_SECONDS", 3600)  # What comes to this tenant comes over Redis.
    with closing(redis.Redis.from_url(installation.redis_url)) as client:
        client.set(names.stream(other_tenant.tenant), "no stream")
        following = [
            await begun(installation, who, hub.follow(scope_of(patient_database, who), RunFilter()))
            for who in (other_tenant, tenant)
        ]
        run = await asyncio.to_thread(installation.trigger, tenant, "diagnostics.echo", {"value": 1})
        async with asyncio.timeout(20):
            while (update := await anext(following[1])).state != "SUCCEEDED":
                assert update.run_id == run
        client.delete(names.stream(other_tenant.tenant))
