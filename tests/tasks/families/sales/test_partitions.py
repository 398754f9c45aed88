"""Months of orders come and go through the owner's functions only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import psycopg2
import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tasks.families.sales.models import Order, OrderLine
from tasks.families.sales.service import imports, orders, preferences, retention
from tenants import db
from tenants.context import Principal
from tests.support.installations import Installation, eventually
from tests.tasks.families.sales.conftest import AS_OF, load, text_of

JUNE = datetime(2008, 6, 1, tzinfo=UTC)


def months(installation: Installation) -> set[str]:
    rows = installation.rows(
        "SELECT substring(inhrelid::regclass::text FROM '[0-9]{6}$') FROM pg_inherits WHERE inhparent = %s::regclass",
        "sales_order_lines",
    )
    return {month for (month,) in rows if month}


def test_a_month_is_made_once(installation: Installation, tenant: Principal) -> None:
    assert installation.write(tenant, orders.open_months, {JUNE}) == 1
    assert installation.write(tenant, orders.open_months, {JUNE}) == 0
    assert "200806" in months(installation)


def test_rows_that_waited_in_the_default_partition_move_in(installation: Installation, tenant: Principal) -> None:
    (batch,) = imports.read(text_of("1,A1,T,2,2007-03-05,3,7,X"), ZoneInfo("UTC"), AS_OF)
    import_id = installation.write(tenant, imports.begin, "early.csv")
    installation.write(tenant, imports.load, import_id, batch)
    assert installation.rows("SELECT count(*) FROM sales_order_lines_default") == [(1,)]

    installation.write(tenant, orders.open_months, {datetime(2007, 3, 1, tzinfo=UTC)})

    assert installation.rows("SELECT count(*) FROM sales_order_lines_default") == [(0,)]
    assert installation.rows("SELECT amount FROM sales_order_lines_p200703") == [(6,)]
    assert installation.write(tenant, lambda session: session.scalars(select(Order.number)).all()) == ["1"]


def test_a_row_that_arrives_while_its_month_is_made_moves_in_too(installation: Installation, tenant: Principal) -> None:
    (batch,) = imports.read(text_of("2,A1,T,2,2007-08-05,3,7,X"), ZoneInfo("UTC"), AS_OF)
    import_id = installation.write(tenant, imports.begin, "late.csv")
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    with db.open_session(engine, tenant) as session, ThreadPoolExecutor(1) as pool:
        imports.load(session, import_id, batch)
        made = pool.submit(installation.write, tenant, orders.open_months, {datetime(2007, 8, 1, tzinfo=UTC)})
        eventually(
            lambda: installation.rows(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                " AND query LIKE %s",
                "%ensure_order_partitions%",
            )
        )
        session.commit()
        assert made.result(10) == 1
    engine.dispose()
    assert installation.rows("SELECT amount FROM sales_order_lines_p200708") == [(6,)]
    assert installation.rows("SELECT count(*) FROM sales_orders_default") == [(0,)]


@pytest.mark.parametrize("month", [datetime(1900, 1, 1, tzinfo=UTC), datetime(2900, 1, 1, tzinfo=UTC)])
def test_a_silly_month_is_refused(installation: Installation, tenant: Principal, month: datetime) -> None:
    before = months(installation)

    with pytest.raises(DBAPIError, match="not a range that orders are placed in"):
        installation.write(tenant, orders.open_months, {month})

    assert months(installation) == before


def test_only_empty_months_are_dropped_and_only_by_operators(installation: Installation, tenant: Principal) -> None:
    installation.write(tenant, load, text_of("9,A1,T,2,2006-03-05,3,7,X"))
    installation.write(tenant, orders.open_months, {datetime(2006, 4, 1, tzinfo=UTC)})
    before = months(installation)
    with (
        closing(psycopg2.connect(installation.addresses.app)) as app,
        app.cursor() as cursor,
        pytest.raises(psycopg2.errors.InsufficientPrivilege),
    ):
        cursor.execute("SELECT drop_empty_order_partitions(now())")
    assert months(installation) == before

    with closing(psycopg2.connect(installation.addresses.system)) as system, system.cursor() as cursor:
        cursor.execute("SELECT drop_empty_order_partitions('2006-05-01T00:00Z')")
        assert cursor.fetchone() == (1,)
        system.commit()

    assert before - months(installation) == {"200604"}


def test_no_login_reaches_a_month_itself(installation: Installation, tenant: Principal) -> None:
    installation.write(tenant, orders.open_months, {JUNE})
    for address in (installation.addresses.app, installation.addresses.system):
        with (
            closing(psycopg2.connect(address)) as login,
            login.cursor() as cursor,
            pytest.raises(psycopg2.errors.InsufficientPrivilege),
        ):
            cursor.execute("SELECT count(*) FROM sales_orders_p200806")


def test_orders_past_the_retention_go_and_others_stay(session: Session) -> None:
    now = datetime(2011, 1, 20, tzinfo=UTC)
    preferences.configure(session, retention_months=2)
    load(
        session,
        text_of(
            "1,A1,T,1,2010-09-05,3,7,X",
            "2,A1,T,1,2010-10-31T23:59:59+00:00,3,7,X",
            "3,A1,T,1,2010-11-01T00:00:00+00:00,3,7,X",
        ),
        now=now,
    )
    before = retention.cutoff(session, now)
    removed = []
    while (month := retention.oldest_month(session, before)) is not None:
        removed.append((month.month, retention.remove_month(session, month, before)))

    assert before == datetime(2010, 11, 1, tzinfo=UTC)
    assert removed == [(9, 1), (10, 1)]
    assert session.scalars(select(Order.number)).all() == session.scalars(select(OrderLine.number)).all() == ["3"]


def test_another_tenants_old_orders_stay(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    for owner in (tenant, other_tenant):
        installation.write(owner, load, text_of("1,A1,T,1,2005-09-05,3,7,X"))
    before = datetime(2006, 1, 1, tzinfo=UTC)

    assert installation.write(tenant, retention.remove_month, datetime(2005, 9, 1, tzinfo=UTC), before) == 1

    assert installation.write(tenant, lambda session: session.scalars(select(Order.number)).all()) == []
    assert installation.write(other_tenant, lambda session: session.scalars(select(Order.number)).all()) == ["1"]
