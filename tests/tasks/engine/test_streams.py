"""Live updates: in order, without a gap, also where Redis loses what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tasks.engine.runs import RunFilter
from tasks.engine.states import RunState
from tasks.engine.streams import Hub, Update
from tenants.context import Principal, Scope
from tenants.db import AsyncDatabase
from tenants.errors import InvalidInput, NotFound
from tests.support.installations import Installation

pytestmark = pytest.mark.e2e


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


def scope_of(database: AsyncDatabase, principal: Principal) -> Scope:
    async def ring(notices: list[object]) -> None:
        raise AssertionError(notices)

    return Scope(principal, database, ring)


async def collect(updates: AsyncIterator[Update], seconds: float = 20) -> list[Update]:
    async with asyncio.timeout(seconds):
        return [update async for update in updates]


def changes(updates: list[Update]) -> list[tuple[int | None, str | None]]:
    return [(update.sequence, update.state) for update in updates if update.kind != "PROGRESS"]


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
    mine = hub.follow(scope_of(database, tenant), RunFilter())
    waiting = asyncio.ensure_future(anext(mine))
    foreign = await asyncio.to_thread(installation.trigger, other_tenant, "diagnostics.echo", {"value": "theirs"})
    run = await asyncio.to_thread(installation.trigger, tenant, "diagnostics.echo", {"value": "mine"})
    await asyncio.to_thread(installation.ended, other_tenant, foreign)
    updates = [await waiting]
    async with asyncio.timeout(20):
        while updates[-1].state != RunState.SUCCEEDED:
            updates.append(await anext(mine))
    assert {update.run_id for update in updates} == {run}
    assert changes(updates) == [(1, "QUEUED"), (2, "RELEASED"), (3, "RUNNING"), (4, "SUCCEEDED")]


async def test_a_filter_by_state_begins_where_a_run_comes_to_match(
    installation: Installation, database: AsyncDatabase, tenant: Principal, hub: Hub
) -> None:
    failures = hub.follow(scope_of(database, tenant), RunFilter(states=[RunState.FAILED]))
    waiting = asyncio.ensure_future(anext(failures))
    await asyncio.to_thread(installation.trigger, tenant, "diagnostics.echo", {"value": 1})
    bad = await asyncio.to_thread(
        installation.trigger, tenant, "diagnostics.fail", {"message": "no", "retryable": False}
    )
    async with asyncio.timeout(20):
        update = await waiting
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
    from tasks.engine import positions
    from tasks.engine.positions import Position

    run = await asyncio.to_thread(installation.trigger, tenant, "diagnostics.echo", {"value": 1})
    await asyncio.to_thread(installation.ended, tenant, run)
    foreign = positions.seal(installation.settings.auth.token_keys, tenant.tenant, Position("1:1:", "elsewhere"))
    updates = await collect(hub.follow(scope_of(database, tenant), run, foreign))
    assert [update.kind for update in updates] == ["RESET", "SNAPSHOT"]
