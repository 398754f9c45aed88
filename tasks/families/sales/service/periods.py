"""Days, weeks and months of the tenant's own calendar, and the moments at which they begin and end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import select
from sqlalchemy.orm import Session

from tenants.models import Tenant

_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Period:
    """Whole days of one timezone.

    Args:
        first: its first day.
        last: its last day.
        zone: whose days they are.
    """

    first: date
    last: date
    zone: ZoneInfo

    @property
    def start(self) -> datetime:
        """The moment it begins, in UTC."""
        return _midnight(self.first, self.zone)

    @property
    def end(self) -> datetime:
        """The moment it is over, in UTC."""
        return _midnight(self.last + timedelta(days=1), self.zone)

    @property
    def days(self) -> int:
        """How many days it has."""
        return (self.last - self.first).days + 1


def zone(session: Session) -> ZoneInfo:
    """The tenant's timezone."""
    return ZoneInfo(session.scalars(select(Tenant.timezone)).one())


def day_before(moment: datetime, zone: ZoneInfo) -> date:
    """The day that was running, or had just ended, at the moment: at midnight it is the day before."""
    return (moment - _INSTANT).astimezone(zone).date()


def last_days(count: int, moment: datetime, zone: ZoneInfo) -> Period:
    """The given number of days up to the moment, the running one included."""
    last = day_before(moment, zone)
    return Period(last - timedelta(days=count - 1), last, zone)


def yesterday(moment: datetime, zone: ZoneInfo) -> Period:
    """The last day that was over at the moment."""
    day = moment.astimezone(zone).date() - timedelta(days=1)
    return Period(day, day, zone)


def last_week(moment: datetime, zone: ZoneInfo) -> Period:
    """The last week, Monday to Sunday, that was over at the moment."""
    today = moment.astimezone(zone).date()
    monday = today - timedelta(days=today.weekday() + 7)
    return Period(monday, monday + timedelta(days=6), zone)


def month(text: str, zone: ZoneInfo) -> Period:
    """The month written as `2011-01`."""
    first = date.fromisoformat(f"{text}-01")
    return Period(first, _next_month(first) - timedelta(days=1), zone)


def last_month(moment: datetime, zone: ZoneInfo) -> Period:
    """The last month that was over at the moment."""
    last = moment.astimezone(zone).date().replace(day=1) - timedelta(days=1)
    return Period(last.replace(day=1), last, zone)


def before(period: Period) -> Period:
    """As many days right before it; for a whole month, the month before."""
    last = period.first - timedelta(days=1)
    whole_month = period.first.day == 1 and period.last + timedelta(days=1) == _next_month(period.first)
    first = last.replace(day=1) if whole_month else period.first - timedelta(days=period.days)
    return Period(first, last, period.zone)


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _next_month(first: date) -> date:
    return (first + timedelta(days=31)).replace(day=1)
