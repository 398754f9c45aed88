"""The dashboard's figures, read from the rollups.

One statement reads them all, so that no reader sees one view from before a refresh beside another from after it. Its
answer is a JSON text, which is also what the cache holds.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import text
from sqlalchemy.orm import Session

from tasks.families.sales.service import figures, money, periods, preferences, rollups

DEFAULT_DAYS = 30
WARM_DAYS = (7, DEFAULT_DAYS, 90)
"""The windows that people look at most: what the cache is warmed with."""


class Dashboard(figures.Part):
    """All figures of one window of days.

    `by_country` and `top_products` begin with the greatest revenue; `hourly` has the 48 hours before the refresh.
    """

    currency: str
    first_day: date
    last_day: date
    as_of: datetime | None
    refreshed_at: datetime | None
    totals: figures.Figures
    new_customers: int
    returning_customers: int
    by_day: list[figures.Day]
    by_country: list[figures.Country]
    top_products: list[figures.Product]
    hourly: list[figures.Hour]
    segments: list[figures.Segment]

    @property
    def average_order(self) -> Decimal:
        """Revenue for each order, rounded to minor units."""
        return money.mean(self.totals.revenue, self.totals.orders, self.currency)


def version(session: Session) -> str:
    """Changes with every refresh: names what a cached answer was read from."""
    found = rollups.refreshed_at(session)
    return found.isoformat() if found else "never"


def cache_name(version: str, days: int, as_of: datetime | None) -> str:
    """What an answer is kept under: another refresh, window or moment is another answer."""
    return f"dashboard:{days}:{as_of.isoformat() if as_of else 'last'}:{version}"


def read(session: Session, *, days: int = DEFAULT_DAYS, as_of: datetime | None = None) -> Dashboard:
    """The figures of the last days before a moment.

    Args:
        days: 1 to 366.
        as_of: the moment; that of the last refresh if None.
    """
    return parse(read_text(session, days=days, as_of=as_of))


def read_text(session: Session, *, days: int = DEFAULT_DAYS, as_of: datetime | None = None) -> str:
    """The same as the JSON text that `parse` takes."""
    zone = periods.zone(session)
    if as_of is None:
        as_of = session.execute(text("SELECT coalesce(max(as_of), now()) FROM sales_refreshes")).scalar_one()
    window = periods.last_days(days, as_of, zone)
    found: str = session.execute(
        _READ,
        {
            "first": window.first,
            "last": window.last,
            "currency": preferences.read(session).currency,
            "top": figures.TOP_PRODUCTS,
        },
    ).scalar_one()
    return found


def parse(answer: str) -> Dashboard:
    """The figures that a JSON text holds."""
    return Dashboard.model_validate_json(answer)


_SUMS = (
    "sum(revenue)::text AS revenue, sum(cancelled)::text AS cancelled, sum(orders)::bigint AS orders,"
    " sum(units)::bigint AS units"
)
_WITHIN = "day BETWEEN cast(:first AS date) AND cast(:last AS date)"
_READ = text(f"""
    WITH days AS (
        SELECT d::date AS day, coalesce(revenue, 0) AS revenue, coalesce(cancelled, 0) AS cancelled,
               coalesce(orders, 0) AS orders, coalesce(units, 0) AS units,
               coalesce(new_customers, 0) AS new_customers, coalesce(returning_customers, 0) AS returning_customers
        FROM generate_series(cast(:first AS timestamp), cast(:last AS timestamp), '1 day') d
        LEFT JOIN sales_daily ON day = d::date
    ), countries AS (
        SELECT country, {_SUMS} FROM sales_daily_countries WHERE {_WITHIN} GROUP BY country
    ), products AS (
        SELECT sku, description, {_SUMS} FROM sales_daily_products JOIN sales_products USING (tenant_id, sku)
        WHERE {_WITHIN} AND stocked GROUP BY sku, description ORDER BY sum(revenue) DESC, sku LIMIT :top
    ), segments AS (
        SELECT segment, count(*) AS customers, sum(monetary)::text AS monetary
        FROM sales_customer_segments GROUP BY segment
    )
    SELECT jsonb_build_object(
        'currency', cast(:currency AS text), 'first_day', cast(:first AS date), 'last_day', cast(:last AS date),
        'as_of', (SELECT max(as_of) FROM sales_refreshes),
        'refreshed_at', (SELECT max(refreshed_at) FROM sales_refreshes),
        'totals', (SELECT to_jsonb(t) FROM (SELECT {_SUMS} FROM days) t),
        'new_customers', (SELECT sum(new_customers) FROM days),
        'returning_customers', (SELECT sum(returning_customers) FROM days),
        'by_day', (SELECT jsonb_agg(jsonb_build_object(
            'day', day, 'revenue', revenue::text, 'cancelled', cancelled::text, 'orders', orders, 'units', units,
            'new_customers', new_customers, 'returning_customers', returning_customers) ORDER BY day) FROM days),
        'by_country', (SELECT coalesce(jsonb_agg(c ORDER BY c.revenue::numeric DESC, country), '[]') FROM countries c),
        'top_products', (SELECT coalesce(jsonb_agg(p ORDER BY p.revenue::numeric DESC, p.sku), '[]') FROM products p),
        'hourly', (SELECT coalesce(jsonb_agg(jsonb_build_object(
            'hour', hour, 'revenue', revenue::text, 'cancelled', cancelled::text, 'orders', orders, 'units', units)
            ORDER BY hour), '[]') FROM sales_hourly),
        'segments', (SELECT coalesce(jsonb_agg(s ORDER BY s.monetary::numeric DESC, s.segment), '[]') FROM segments s)
    )::text
""")  # noqa: S608 - put together from this module's own words
