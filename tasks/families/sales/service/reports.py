"""What a report says, as the data that its template draws: every number is worded here, the template only places it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy.orm import Session

from tasks.families.sales.service import figures, money, people, periods
from tasks.families.sales.service.periods import Period

_COUNTRIES = 8
_TICKS = 4
_TOPS = tuple(map(Decimal, ("1", "1.2", "1.6", "2", "2.4", "3.2", "4", "6", "8", "10")))


@dataclass(frozen=True, slots=True)
class Report:
    """One report: its words for people, and the data for its template."""

    title: str
    figures: figures.PeriodFigures
    data: dict[str, Any]


def monthly(session: Session, month: str | None, as_of: datetime) -> Report:
    """The report on a month written as `2011-01`; on the last one over at the moment if None."""
    zone = periods.zone(session)
    period = periods.month(month, zone) if month else periods.last_month(as_of, zone)
    return _report(session, period, f"Sales in {period.first:%B %Y}", f"{periods.before(period).first:%B}")


def weekly(session: Session, as_of: datetime) -> Report:
    """The report on the last week that was over at the moment."""
    period = periods.last_week(as_of, periods.zone(session))
    year, week, _ = period.first.isocalendar()
    earlier = periods.before(period).first.isocalendar().week
    return _report(session, period, f"Sales in week {week} of {year}", f"week {earlier}")


def _report(session: Session, period: Period, title: str, earlier: str) -> Report:
    now = figures.of_period(session, period)
    before = figures.of_period(session, periods.before(period))
    data = {
        "title": title,
        "tenant": people.tenant_name(session),
        "period": f"{_day(period.first)} to {_day(period.last)}, {period.zone.key}",
        "currency": now.currency,
        "tiles": _tiles(now, before, earlier),
        "days": _days(now),
        "ticks": _ticks(max((day.revenue for day in now.by_day), default=Decimal(0))),
        "countries": _countries(now),
        "products": _products(now),
        "segments": _segments(now),
    }
    return Report(title, now, data)


def _tiles(now: figures.PeriodFigures, before: figures.PeriodFigures, earlier: str) -> list[dict[str, str]]:
    means = [money.mean(found.totals.revenue, found.totals.orders, now.currency) for found in (now, before)]
    return [
        _tile(
            "Revenue", money.shown(now.totals.revenue, now.currency), now.totals.revenue, before.totals.revenue, earlier
        ),
        _tile("Orders", f"{now.totals.orders:,}", now.totals.orders, before.totals.orders, earlier),
        _tile("Average order", f"{now.currency} {means[0]:,}", means[0], means[1], earlier),
        _tile("New customers", f"{now.new_customers:,}", now.new_customers, before.new_customers, earlier),
    ]


def _tile(label: str, value: str, now: Decimal | int, before: Decimal | int, earlier: str) -> dict[str, str]:
    if not before:
        return {"label": label, "value": value, "change": f"nothing in {earlier}", "trend": "flat"}
    change = (now / Decimal(before) - 1) * 100
    trend = "up" if change > 0 else "down" if change < 0 else "flat"
    return {"label": label, "value": value, "change": f"{change:+.1f} % on {earlier}", "trend": trend}


def _days(now: figures.PeriodFigures) -> list[dict[str, Any]]:
    top = _top(max((day.revenue for day in now.by_day), default=Decimal(0)))
    return [
        {
            "label": str(day.day.day) if len(now.by_day) > 7 else f"{day.day:%a} {day.day.day}",
            "weekend": day.day.weekday() >= 5,
            "share": float(max(day.revenue, Decimal(0)) / top),
        }
        for day in now.by_day
    ]


def _ticks(highest: Decimal) -> list[dict[str, Any]]:
    top = _top(highest)
    return [{"share": step / _TICKS, "label": _short(top * step / _TICKS)} for step in range(_TICKS + 1)]


def _top(highest: Decimal) -> Decimal:
    """The least end of an axis that is no less and whose four even steps are round numbers."""
    if highest <= 0:
        return Decimal(1)
    power = Decimal(1).scaleb(math.floor(highest.log10()))
    return next(power * factor for factor in _TOPS if power * factor >= highest)


def _short(amount: Decimal) -> str:
    for limit, sign in ((1_000_000, "M"), (1_000, "k")):
        if amount >= limit:
            return f"{(amount / limit).normalize():f} {sign}"
    return f"{amount.normalize():f}"


def _countries(now: figures.PeriodFigures) -> list[dict[str, Any]]:
    shown = now.by_country[:_COUNTRIES]
    greatest = max((country.revenue for country in shown), default=Decimal(0)) or Decimal(1)
    return [
        {
            "name": country.country,
            "share": float(max(country.revenue, Decimal(0)) / greatest),
            "revenue": f"{money.rounded(country.revenue, now.currency):,}",
            "orders": f"{country.orders:,}",
        }
        for country in shown
    ]


def _products(now: figures.PeriodFigures) -> list[dict[str, str]]:
    return [
        {
            "sku": product.sku,
            "description": product.description,
            "units": f"{product.units:,}",
            "revenue": f"{money.rounded(product.revenue, now.currency):,}",
        }
        for product in now.top_products
    ]


def _segments(now: figures.PeriodFigures) -> list[dict[str, Any]]:
    most = max((segment.customers for segment in now.segments), default=1)
    return [
        {
            "name": segment.segment,
            "customers": f"{segment.customers:,}",
            "share": segment.customers / most,
            "monetary": f"{money.rounded(segment.monetary, now.currency):,}",
        }
        for segment in now.segments
    ]


def _day(day: date) -> str:
    return f"{day.day} {day:%B %Y}"
