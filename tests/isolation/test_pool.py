"""One connection that serves two tenants in turn never carries one into the other's transaction."""

from __future__ import annotations

import asyncio
import gc
import random
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tasks.families.diagnostics import service
from tasks.families.diagnostics.models import Mark
from tenants import db, ids
from tenants.context import Principal, Scope
from tenants.errors import Unavailable
from tenants.settings import Database
from tests.support.installations import Installation

TRANSACTIONS = 1000
_LOCK = 7


class Interrupted(Exception):
    """What a service fails with."""


@pytest.fixture
async def pool(installation: Installation) -> AsyncIterator[db.AsyncDatabase]:
    """The api's door with one connection."""
    address = Database(url=installation.addresses.app, pool_size=1, pool_overflow=0, pool_wait_seconds=60)
    opened = db.AsyncDatabase(address)
    yield opened
    await opened.close()


@pytest.fixture
def engine(installation: Installation) -> Iterator[Engine]:
    """The workers' door with one connection."""
    made = db.sync_engine(installation.addresses.app, pool_size=1)
    yield made
    made.dispose()


@pytest.fixture
def pair(installation: Installation, new_tenant: Callable[..., Principal]) -> list[Principal]:
    """Two tenants with one mark each."""
    made = [new_tenant("diagnostics"), new_tenant("diagnostics")]
    for principal in made:
        installation.write(principal, service.mark, "key", "value", ids.new(), 1)
    return made


def _seen(session: Session, pause: float = 0.0) -> set[UUID]:
    if pause:
        session.execute(select(func.pg_sleep(pause)))
    return set(session.scalars(select(Mark.tenant_id)))


def _write_and_fail(session: Session) -> None:
    service.mark(session, "key", "never", ids.new(), 1)
    raise Interrupted


def _break(session: Session) -> None:
    session.execute(text("SELECT 1 / 0"))


def _wait_for_lock(session: Session) -> None:
    session.execute(select(func.pg_advisory_xact_lock(_LOCK)))


@db.single_statement
def _sleep(session: Session) -> None:
    db.fetch(session, select(func.pg_sleep(60)))


def _backend(session: Session) -> int:
    return int(session.scalars(select(func.pg_backend_pid())).one())


@db.single_statement
def _backend_alone(session: Session) -> int:
    return int(db.fetch(session, text("SELECT pg_backend_pid() AS pid"))[0]["pid"])


async def _nothing(notices: list[object]) -> None:
    return None


async def test_a_thousand_interleaved_transactions_see_only_their_own(
    pool: db.AsyncDatabase, pair: list[Principal], installation: Installation
) -> None:
    chance = random.Random(20)
    scopes = [Scope(principal, pool, _nothing) for principal in pair]
    counted = {"read": 0, "failed": 0, "broken": 0, "cancelled": 0}

    async def one(number: int) -> None:
        scope = scopes[number % 2]
        match chance.choices(["read", "fail", "break", "cancel"], [7, 1, 1, 1])[0]:
            case "read":
                assert await scope.read(_seen) == {scope.principal.tenant}
                counted["read"] += 1
            case "fail":
                with pytest.raises(Interrupted):
                    await scope.write(_write_and_fail)
                counted["failed"] += 1
            case "break":
                with pytest.raises(DBAPIError):
                    await scope.write(_break)
                counted["broken"] += 1
            case _:
                sleeping = asyncio.ensure_future(scope.read(_seen, 5.0))
                _, waiting = await asyncio.wait([sleeping], timeout=0.01)
                assert waiting == {sleeping}
                sleeping.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await sleeping
                counted["cancelled"] += 1

    lanes = asyncio.Semaphore(8)

    async def laned(number: int) -> None:
        async with lanes:
            await one(number)

    await asyncio.gather(*(laned(number) for number in range(TRANSACTIONS)))
    assert sum(counted.values()) == TRANSACTIONS
    assert min(counted.values()) > 50
    for principal in pair:
        assert installation.write(principal, service.count, "key") == 1


async def test_between_transactions_the_connection_stands_in_no_tenant(
    pool: db.AsyncDatabase, pair: list[Principal]
) -> None:
    for principal in pair:
        await Scope(principal, pool, _nothing).read(_seen)
        async with pool.engine.connect() as connection:
            assert (await connection.scalar(text("SELECT current_setting('app.tenant_id', true)"))) in {"", None}
            assert (await connection.execute(text("SELECT * FROM diagnostics_marks"))).all() == []


async def test_a_read_only_scope_writes_nothing(pool: db.AsyncDatabase, pair: list[Principal]) -> None:
    scope = Scope(pair[0], pool, _nothing)
    with pytest.raises(DBAPIError, match="read-only"):
        await scope.read(service.mark, "key", "value", ids.new(), 1)
    assert await scope.read(service.count, "key") == 1


def test_sessions_of_workers_share_a_connection_and_nothing_else(engine: Engine, pair: list[Principal]) -> None:
    chance = random.Random(21)
    for number in range(200):
        principal = pair[number % 2]
        with db.open_session(engine, principal) as session:
            assert _seen(session) == {principal.tenant}
            if chance.random() < 0.3:
                with pytest.raises(DBAPIError):
                    _break(session)
            elif chance.random() < 0.5:
                session.commit()
                assert _seen(session) == {principal.tenant}
    with engine.connect() as connection:
        assert connection.execute(text("SELECT * FROM diagnostics_marks")).all() == []


def test_a_session_cannot_be_talked_into_another_tenant_by_its_values(engine: Engine, pair: list[Principal]) -> None:
    ours, theirs = pair
    hostile = f"x'; SELECT set_config('app.tenant_id', '{theirs.tenant}', true); --"
    with db.open_session(engine, ours) as session:
        assert service.count(session, hostile) == 0
        service.mark(session, hostile, hostile, ids.new(), 1)
        assert _seen(session) == {ours.tenant}
        session.rollback()


async def test_a_tenant_that_asks_for_ever_more_leaves_room_for_others(
    installation: Installation, pair: list[Principal]
) -> None:
    address = Database(url=installation.addresses.app, pool_size=8, pool_wait_seconds=0.5, statement_seconds=60)
    pool = db.AsyncDatabase(address)
    greedy, modest = pair
    with installation.locked(_LOCK):
        waiting = [asyncio.ensure_future(Scope(greedy, pool, _nothing).read(_wait_for_lock)) for _ in range(20)]
        await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_EXCEPTION)
        assert await Scope(modest, pool, _nothing).read(_seen) == {modest.tenant}
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers].count(Unavailable) == 18
    assert [answer for answer in answers if not isinstance(answer, Unavailable)] == [None, None]
    assert await Scope(greedy, pool, _nothing).read(_seen) == {greedy.tenant}
    del waiting, answers  # Their exceptions hold the frames that waited.
    gc.collect()
    assert not pool._shares, "what no tenant uses is forgotten"
    await pool.close()


async def test_a_statement_that_takes_too_long_is_ended(installation: Installation, pair: list[Principal]) -> None:
    pool = db.AsyncDatabase(Database(url=installation.addresses.app, pool_size=1, statement_seconds=0.2))
    scope = Scope(pair[0], pool, _nothing)
    for attempt in (scope.read(_seen, 60.0), scope.write(_seen, 60.0), scope.read(_sleep)):
        with pytest.raises(Unavailable, match="too long"):
            await attempt
    assert await scope.read(_seen) == {scope.principal.tenant}
    await pool.close()


async def test_after_a_cancelled_statement_the_next_one_gets_its_own_answer(
    pool: db.AsyncDatabase, pair: list[Principal]
) -> None:
    scope = Scope(pair[0], pool, _nothing)
    for _ in range(5):
        before = await scope.read(_backend_alone)
        sleeping = asyncio.ensure_future(scope.read(_sleep))
        _, waiting = await asyncio.wait([sleeping], timeout=0.01)
        assert waiting == {sleeping}
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        assert await scope.read(_backend_alone) != before


@pytest.mark.parametrize("ask", [_backend, _backend_alone])
async def test_a_connection_that_the_server_has_closed_is_replaced(
    installation: Installation, pool: db.AsyncDatabase, pair: list[Principal], ask: Callable[[Session], int]
) -> None:
    scope = Scope(pair[0], pool, _nothing)
    before = await scope.read(ask)
    closed = asyncio.Event()
    async with pool.engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
    driver.add_termination_listener(lambda _: closed.set())
    await asyncio.to_thread(_end, installation, before)
    async with asyncio.timeout(10):
        await closed.wait()
    assert await scope.read(ask) != before


async def test_a_single_statement_whose_connection_is_lost_is_told_to_come_again(
    installation: Installation, pool: db.AsyncDatabase, pair: list[Principal]
) -> None:
    scope = Scope(pair[0], pool, _nothing)
    before = await scope.read(_backend_alone)
    sleeping = asyncio.ensure_future(scope.read(_sleep))
    await asyncio.wait([sleeping], timeout=0.01)
    await asyncio.to_thread(_end, installation, before)
    with pytest.raises(Unavailable):
        await sleeping
    assert await scope.read(_backend_alone) != before


def _end(installation: Installation, backend: int) -> None:
    with closing(psycopg2.connect(installation.addresses.app)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", (backend,))


async def test_an_error_tells_nothing_of_a_tenants_values(
    pool: db.AsyncDatabase, engine: Engine, pair: list[Principal]
) -> None:
    row = {"user": ids.new(), "role": "a private value"}

    def refused(session: Session) -> None:
        session.execute(text("INSERT INTO memberships (user_id, role) VALUES (:user, :role)"), row)

    with pytest.raises(DBAPIError) as asynchronous:
        await Scope(pair[0], pool, _nothing).write(refused)
    with db.open_session(engine, pair[0]) as session, pytest.raises(DBAPIError) as synchronous:
        refused(session)
    for error in (asynchronous.value, synchronous.value):
        shown = "".join(traceback.format_exception(error))
        assert "ck_memberships_role" in shown
        assert "a private value" not in shown
