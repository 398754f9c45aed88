"""The dashboard's figures are those that anybody can add up from the file."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from tasks.families.sales.models import CountryDay, CustomerSegment, Day, ProductDay
from tasks.families.sales.service import dashboard, figures, measures, periods, rollups
from tenants import db
from tenants.context import Principal
from tests.support.installations import Installation
from tests.tasks.families.sales.conftest import AS_OF, load, refresh, text_of

Sale = tuple[date, str, str, str, str, Decimal]


def test_revenue_by_day_country_and_product_is_what_the_file_adds_up_to(
    installation: Installation, shop: Principal, retail_sales: list[Sale]
) -> None:
    by_day: dict[date, Decimal] = defaultdict(Decimal)
    by_country: dict[tuple[date, str], Decimal] = defaultdict(Decimal)
    by_product: dict[tuple[date, str], Decimal] = defaultdict(Decimal)
    for day, _, _, country, sku, amount in retail_sales:
        by_day[day] += amount
        by_country[day, country] += amount
        by_product[day, sku] += amount

    def stored(session: Session) -> None:
        assert {row.day: row.revenue for row in session.scalars(select(Day))} == by_day
        assert {(row.day, row.country): row.revenue for row in session.scalars(select(CountryDay))} == by_country
        assert {(row.day, row.sku): row.revenue for row in session.scalars(select(ProductDay))} == by_product

    installation.write(shop, stored)
    assert sum(by_day.values()) == Decimal("686054.09")


def test_orders_and_customers_are_counted_once(
    installation: Installation, shop: Principal, retail_sales: list[Sale]
) -> None:
    orders = {(day, number) for day, number, *_ in retail_sales}
    first: dict[str, date] = {}
    for day, _, customer, *_ in sorted(retail_sales):
        first.setdefault(customer, day)
    buyers = {(day, customer) for day, _, customer, *_ in retail_sales}

    found = {row.day: row for row in installation.write(shop, lambda session: session.scalars(select(Day)).all())}

    assert {day: row.orders for day, row in found.items()} == Counter(day for day, _ in orders)
    new = Counter(day for day, customer in buyers if first[customer] == day)
    assert {day: row.new_customers for day, row in found.items()} == {day: new[day] for day in found}
    returning = Counter(day for day, customer in buyers if first[customer] < day)
    assert {day: row.returning_customers for day, row in found.items()} == {day: returning[day] for day in found}


def test_the_dashboard_shows_the_window_asked_for(
    installation: Installation, shop: Principal, retail_sales: list[Sale]
) -> None:
    week = [sale for sale in retail_sales if sale[0] >= date(2011, 1, 3)]
    revenue = sum((sale[5] for sale in week), Decimal(0))
    orders = len({sale[1] for sale in week})

    found = installation.write(shop, dashboard.read, days=7, as_of=AS_OF)

    assert (found.first_day, found.last_day) == (date(2011, 1, 3), date(2011, 1, 9))
    assert [day.day for day in found.by_day] == [date(2011, 1, day) for day in range(3, 10)]
    assert (found.totals.revenue, found.totals.orders) == (revenue, orders)
    assert found.average_order == (revenue / orders).quantize(Decimal("0.01"))
    countries: dict[str, Decimal] = defaultdict(Decimal)
    for sale in week:
        countries[sale[3]] += sale[5]
    assert [(row.country, row.revenue) for row in found.by_country] == sorted(
        countries.items(), key=lambda item: (-item[1], item[0])
    )
    assert found.currency == "EUR"
    assert [hour.hour for hour in found.hourly] == [datetime(2011, 1, 9, 12, tzinfo=UTC)]


def test_segments_hold_every_customer_once(
    installation: Installation, shop: Principal, retail_sales: list[Sale]
) -> None:
    last: dict[str, date] = {}
    orders: dict[str, set[str]] = defaultdict(set)
    spent: dict[str, Decimal] = defaultdict(Decimal)
    for day, number, customer, _, _, amount in retail_sales:
        last[customer] = max(day, last.get(customer, day))
        orders[customer].add(number)
        spent[customer] += amount

    found = installation.write(shop, lambda session: session.scalars(select(CustomerSegment)).all())

    expected = {c: ((date(2011, 1, 9) - last[c]).days, len(orders[c]), spent[c]) for c in last}
    assert {row.customer: (row.recency_days, row.frequency, row.monetary) for row in found} == expected
    ranked = sorted(spent.values())
    for row in found:
        assert row.monetary_score == 1 + ranked.index(row.monetary) * 5 // len(ranked)


def test_a_period_drawn_from_the_orders_agrees_with_the_rollups(installation: Installation, shop: Principal) -> None:
    def both(session: Session) -> None:
        month = periods.month("2010-12", periods.zone(session))
        drawn = figures.of_period(session, month)
        shown = dashboard.read(session, days=31, as_of=month.end)
        assert drawn.totals == shown.totals
        assert drawn.by_day == shown.by_day
        assert drawn.by_country == shown.by_country
        assert drawn.top_products == shown.top_products

    installation.write(shop, both)


def test_a_tenant_sees_its_own_orders_only(
    installation: Installation, shop: Principal, other_tenant: Principal
) -> None:
    before = installation.write(shop, dashboard.read_text)
    installation.write(other_tenant, load, text_of("1,A1,Thing,2,2011-01-05,3.50,7,Norway"))
    installation.write(other_tenant, refresh)

    found = installation.write(other_tenant, dashboard.read, as_of=AS_OF)

    assert found.totals == figures.Figures(revenue=Decimal(7), cancelled=Decimal(0), orders=1, units=2)
    assert [(row.country, row.revenue) for row in found.by_country] == [("Norway", Decimal(7))]
    assert installation.write(shop, dashboard.read_text) == before


def test_a_neighbours_orders_are_never_read_to_find_ones_own(
    installation: Installation, shop: Principal, tenant: Principal
) -> None:
    """Not even where there are two tenants, and no statistics yet of what came in last."""

    def plan(session: Session) -> list[str]:
        load(session, text_of("1,A1,Thing,2,2011-01-05,3.50,7,Norway"))
        measures.prepare(session)
        statement = measures.by_day(None, AS_OF, periods.zone(session))
        text = str(statement.compile(session.connection(), compile_kwargs={"literal_binds": True}))
        return list(session.connection().exec_driver_sql(f"EXPLAIN {text.replace('%%', '%')}").scalars())

    lines = installation.write(tenant, plan)

    assert [line for line in lines if "Seq Scan" in line or "Nested Loop" in line] == []
    assert any("Index" in line and "sales_order_lines" in line for line in lines)


def test_a_second_refresh_replaces_and_never_adds(session: Session) -> None:
    load(session, text_of("1,A1,Thing,2,2011-01-05,3.50,7,Norway", "2,A1,Thing,1,2011-01-06,3.50,8,Norway"))
    assert refresh(session) == refresh(session)
    earlier = refresh(session, datetime(2011, 1, 6, tzinfo=UTC))

    found = dashboard.read(session)

    assert earlier == {"hours": 1, "days": 1, "countries": 1, "products": 1, "segments": 1, "lifetime values": 1}
    assert found.totals.revenue == Decimal(7)


def test_cancellations_take_back_on_their_own_day_and_guests_are_no_customers(session: Session) -> None:
    load(
        session,
        text_of(
            "1,A1,Thing,10,2011-01-05,1.25,7,Norway",
            "C2,A1,Thing,-4,2011-01-07,1.25,7,Norway",
            "3,A1,Thing,1,2011-01-07,0.50,,Norway",
        ),
    )
    refresh(session)

    days = {row.day.day: row for row in dashboard.read(session, days=5).by_day}

    assert (days[5].revenue, days[5].cancelled) == (Decimal("12.5"), Decimal(0))
    assert (days[5].orders, days[5].new_customers) == (1, 1)
    assert (days[7].revenue, days[7].cancelled) == (Decimal("0.5"), Decimal(5))
    assert (days[7].orders, days[7].units) == (1, 1)
    assert (days[7].new_customers, days[7].returning_customers) == (0, 0)
    assert session.scalars(select(CustomerSegment)).one().monetary == Decimal("7.5")


@pytest.mark.parametrize(("zone", "day"), [("Pacific/Auckland", 6), ("America/Los_Angeles", 5), ("UTC", 5)])
def test_a_day_is_one_of_the_tenants_calendar(session: Session, zone: str, day: int) -> None:
    session.connection().exec_driver_sql("UPDATE tenants SET timezone = %s", (zone,))
    load(session, text_of("1,A1,Thing,1,2011-01-05T20:00:00+00:00,2,7,Norway"))
    refresh(session)

    assert [row.day.day for row in session.scalars(select(Day))] == [day]


def test_hours_go_back_two_days_and_no_further(session: Session) -> None:
    load(
        session,
        text_of(*(f"{hour},A1,T,1,{AS_OF - timedelta(hours=hour):%Y-%m-%dT%H:00:00Z},1,7,X" for hour in (1, 47, 49))),
    )
    refresh(session)

    assert [AS_OF - row.hour for row in dashboard.read(session).hourly] == [timedelta(hours=47), timedelta(hours=1)]


def test_half_a_refresh_is_never_seen(installation: Installation, tenant: Principal) -> None:
    installation.write(tenant, load, text_of("1,A1,Thing,1,2011-01-05,2,7,Norway"))
    installation.write(tenant, refresh)
    installation.write(tenant, load, text_of("2,A1,Thing,1,2011-01-05,40,8,Japan"))
    before = installation.write(tenant, dashboard.read_text)
    engine = db.sync_engine(installation.addresses.app, pool_size=1)

    with db.open_session(engine, tenant) as refreshing:
        for _ in rollups.refresh(refreshing, rollups.ALL, AS_OF):
            assert installation.write(tenant, dashboard.read_text) == before
        refreshing.commit()
    engine.dispose()

    after = installation.write(tenant, dashboard.read)
    assert after.totals.revenue == Decimal(42)
    assert {row.country for row in after.by_country} == {"Japan", "Norway"}


def test_an_empty_tenant_has_an_empty_dashboard(session: Session) -> None:
    found = dashboard.read(session, days=3)

    assert (found.totals.orders, found.average_order, found.by_country, found.refreshed_at) == (
        0,
        Decimal("0.00"),
        [],
        None,
    )
    assert len(found.by_day) == 3
