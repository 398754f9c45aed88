"""Calls over psycopg2 end although nobody answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg2
import pytest
from sqlalchemy import text

from tenants import db, postgres
from tests.support import proxy
from tests.support.installations import Installation
from tests.support.proxy import Proxy


@pytest.fixture
def between(installation: Installation) -> Iterator[Proxy]:
    """A way to PostgreSQL that can fail."""
    with proxy.to(installation.addresses.app) as made:
        yield made


def _ask(connection: postgres.Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


@pytest.mark.parametrize(
    ("autocommit", "call"),
    [(True, _ask), (False, _ask), (False, postgres.Connection.commit)],
    ids=["alone", "in a transaction", "commit"],
)
def test_a_call_that_nobody_answers_fails_in_time(
    installation: Installation,
    between: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    autocommit: bool,
    call: Callable[[postgres.Connection], None],
) -> None:
    monkeypatch.setattr(postgres.Connection, "answer_seconds", 0.3 if autocommit else 60)
    monkeypatch.setattr(postgres, "_TRANSACTION_SECONDS", 60 if autocommit else 0.3)
    address = between.through(installation.addresses.app)
    with closing(psycopg2.connect(address, connection_factory=postgres.Connection, **postgres.LINE)) as connection:
        connection.autocommit = autocommit
        _ask(connection)
        between.swallow()
        with pytest.raises(psycopg2.OperationalError):
            call(connection)
        assert connection.closed


def test_a_call_that_takes_no_longer_than_it_may_is_left_alone(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres.Connection, "answer_seconds", 0.1)
    address = installation.addresses.app
    with closing(psycopg2.connect(address, connection_factory=postgres.Connection)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.6)")
        connection.autocommit = True
        _ask(connection)
        with connection.cursor() as cursor, pytest.raises(psycopg2.OperationalError):
            cursor.execute("SELECT pg_sleep(60)")


def test_a_pool_replaces_a_connection_on_a_half_open_line(
    installation: Installation, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres.Connection, "answer_seconds", 0.3)
    engine = db.sync_engine(between.through(installation.addresses.app), pool_size=1)
    for _ in range(2):
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
        between.swallow()
    engine.dispose()
