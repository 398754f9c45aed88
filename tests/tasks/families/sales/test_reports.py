"""What reports and letters say, and where periods begin and end."""

from __future__ import annotations

import io
import itertools
from datetime import UTC, date, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfReader
from sqlalchemy.orm import Session

from tasks.families.sales.service import figures, letters, money, periods, reports
from tasks.families.sales.tasks import TEMPLATE
from tasks.gateways import pdf
from tests.tasks.families.sales.conftest import AS_OF, load, text_of

BERLIN = ZoneInfo("Europe/Berlin")


def words(data: dict[str, object]) -> str:
    pages = PdfReader(io.BytesIO(pdf.render(TEMPLATE, data))).pages
    return " ".join(" ".join(page.extract_text() for page in pages).split())


def test_a_tenants_texts_stand_in_the_report_as_they_are(session: Session) -> None:
    evil = '#read("/etc/passwd") *$x$*'
    session.connection().exec_driver_sql("UPDATE tenants SET name = %s", (evil,))
    quoted = evil.replace('"', '""')
    load(session, text_of(f'1,A1,"{quoted}",2,2010-12-05,3.50,7,"{quoted}"'))

    said = words(reports.monthly(session, "2010-12", AS_OF).data)

    assert said.count(evil) == 4  # heading, country, best seller, footer


def test_changes_are_told_against_the_period_before(session: Session) -> None:
    rows = ("1,A1,Thing,2,2010-11-05,10,7,Norway", "2,A1,Thing,3,2010-12-05,10,7,Norway", "3,A1,T,1,2010-12-06,5,8,X")
    load(session, text_of(*rows))

    found = reports.monthly(session, "2010-12", AS_OF)

    assert found.data["tiles"] == [
        {"label": "Revenue", "value": "EUR 35.00", "change": "+75.0 % on November", "trend": "up"},
        {"label": "Orders", "value": "2", "change": "+100.0 % on November", "trend": "up"},
        {"label": "Average order", "value": "EUR 17.50", "change": "-12.5 % on November", "trend": "down"},
        {"label": "New customers", "value": "1", "change": "+0.0 % on November", "trend": "flat"},
    ]
    assert [day["share"] for day in found.data["days"]][4:6] == [30 / 32, 5 / 32]
    assert [tick["label"] for tick in found.data["ticks"]] == ["0", "8", "16", "24", "32"]


def test_a_report_on_nothing_is_drawn_too(session: Session) -> None:
    said = words(reports.weekly(session, AS_OF).data)

    assert "Sales in week 1 of 2011" in said
    assert said.count("No sales in this period.") == 2
    assert "nothing in week 52" in said


def test_a_letter_words_the_day(session: Session) -> None:
    load(session, text_of("1,A1,Lamp,2,2011-01-09,1234.5,7,Norway"))
    day = periods.yesterday(AS_OF, periods.zone(session))
    found = figures.of_period(session, day)

    letter = letters.daily_summary("Shop", day.first, found, figures.of_period(session, periods.before(day)))

    assert letter.subject == "Shop: EUR 2,469.00 on 2011-01-09"
    assert letter.text.splitlines()[0] == "Shop on Sunday, 9 January 2011"
    assert "EUR 2,469.00 (the day before: EUR 0.00)" in letter.text
    assert letter.text.splitlines()[-1].split() == ["EUR", "2,469.00", "2", "x", "Lamp"]


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        ("2026-03-29T00:00:00+01:00", "2026-03-28"),
        ("2026-03-29T23:59:59+02:00", "2026-03-28"),
        ("2026-03-30T00:00:00+02:00", "2026-03-29"),
    ],
)
def test_yesterday_is_the_last_day_that_is_over(moment: str, day: str) -> None:
    assert periods.yesterday(datetime.fromisoformat(moment), BERLIN).first == date.fromisoformat(day)


def test_a_day_on_which_clocks_change_has_its_own_length() -> None:
    days = [periods.Period(date(2026, 3, day), date(2026, 3, day), BERLIN) for day in (28, 29)]
    autumn = periods.Period(date(2026, 10, 25), date(2026, 10, 25), BERLIN)

    assert [(day.end - day.start).total_seconds() / 3600 for day in (*days, autumn)] == [24, 23, 25]
    assert days[0].end == days[1].start == datetime(2026, 3, 28, 23, tzinfo=UTC)


@given(moment=st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)))
def test_periods_join_without_gap_or_overlap(moment: datetime) -> None:
    for found in (
        periods.last_month(moment, BERLIN),
        periods.last_week(moment, BERLIN),
        periods.yesterday(moment, BERLIN),
    ):
        assert found.end <= moment
        assert periods.before(found).end == found.start
    month = periods.last_month(moment, BERLIN)
    assert periods.month(f"{month.first:%Y-%m}", BERLIN) == month
    assert periods.before(month).first.day == 1
    window = periods.last_days(7, moment, BERLIN)
    assert window.start < moment <= window.end
    assert window.days == 7


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        ("2.345", "EUR", "EUR 2.35"),
        ("-2.345", "EUR", "EUR -2.35"),
        ("1234567.5", "JPY", "JPY 1,234,568"),
        ("2.3455", "KWD", "KWD 2.346"),
    ],
)
def test_money_is_rounded_to_minor_units_halves_away_from_zero(amount: str, currency: str, shown: str) -> None:
    assert money.shown(Decimal(amount), currency) == shown


@given(st.decimals("0.01", "999999999", places=2))
def test_an_axis_has_room_and_round_steps(highest: Decimal) -> None:
    ticks = reports._ticks(highest)

    assert [tick["share"] for tick in ticks] == [0, 0.25, 0.5, 0.75, 1]
    assert all(len(tick["label"]) <= 7 for tick in ticks)
    assert highest <= reports._top(highest) <= 2 * highest
    assert len({tick["label"] for tick in ticks}) == 5
    assert all(a["share"] < b["share"] for a, b in itertools.pairwise(ticks))
