"""Segments and lifetime values of customers."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Integer, column, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, array
from sqlalchemy.orm import Session

from tasks.families.sales.models import CustomerSegment, CustomerValue
from tasks.families.sales.service import rollups, segments
from tests.tasks.families.sales.conftest import load, text_of

NOW = datetime(2011, 7, 1, tzinfo=UTC)
SEGMENTS = {
    "champions",
    "loyal",
    "potential loyalists",
    "new",
    "promising",
    "need attention",
    "about to sleep",
    "cannot lose",
    "at risk",
    "hibernating",
    "lost",
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.integers(-1000, 1000), min_size=1, max_size=60))
def test_quintiles_order_customers_and_share_them_out(session: Session, values: list[int]) -> None:
    rows = func.unnest(literal(values, ARRAY(Integer))).table_valued(column("value", Integer)).render_derived()
    found = session.execute(select(rows.c.value, segments.quintile(rows.c.value))).all()

    assert sorted(value for value, _ in found) == sorted(values)
    scores = sorted((value, score) for value, score in found)
    assert all(1 <= score <= 5 for _, score in scores)
    for (value, score), (following, higher) in itertools.pairwise(scores):
        assert score == higher if value == following else score <= higher
    assert scores[0][1] == 1
    if len(set(values)) == len(values) and len(values) >= 5:
        counts = [sum(1 for _, score in scores if score == fifth) for fifth in range(1, 6)]
        assert max(counts) - min(counts) <= 1


def test_every_triple_of_scores_names_a_segment(session: Session) -> None:
    fifths = func.unnest(array([1, 2, 3, 4, 5]))
    r, f, m = (select(fifths.label("score")).subquery() for _ in range(3))
    named = session.execute(
        select(r.c.score, f.c.score, m.c.score, segments.name(r.c.score, f.c.score, m.c.score)).select_from(
            r.join(f, literal(True)).join(m, literal(True))
        )
    ).all()
    found = {(recency, frequency, monetary): name for recency, frequency, monetary, name in named}

    assert len(found) == 125
    assert set(found.values()) == SEGMENTS
    assert found[5, 5, 5] == "champions"
    assert found[1, 5, 5] == "cannot lose"
    assert found[5, 1, 1] == "new"
    assert found[1, 1, 1] == "lost"


def test_lifetime_values_follow_the_documented_formula(session: Session) -> None:
    """Two customers; the second ordered three times, a third of a year apart, and then no more for a third."""
    year = timedelta(days=365.25)
    start = NOW - year
    placed = {"1": ("a", start), "2": ("b", start), "3": ("b", start + year / 3), "4": ("b", start + year * 2 / 3)}
    sales = (f"{number},A1,T,10,{at.isoformat()},6,{who},X" for number, (who, at) in placed.items())
    load(session, text_of(*sales, f"C5,A1,T,-3,{(start + year / 3).isoformat()},6,b,X"), now=NOW)
    list(rollups.refresh(session, rollups.LIFETIMES, NOW))

    values = {row.customer: row for row in session.scalars(select(CustomerValue))}

    overall = (0 + 2) / (1 + 1)
    assert values["a"].historic == Decimal(60)
    assert values["a"].active_probability == 1
    assert values["a"].yearly_orders == pytest.approx((0 + 1) / (1 + 1 / overall))
    assert float(values["a"].predicted) == pytest.approx(60 * 0.5, abs=1e-3)
    assert values["b"].historic == Decimal(180 - 18)
    assert values["b"].average_order == Decimal(54)
    assert values["b"].active_probability == pytest.approx((2 / 3) ** 2)
    assert values["b"].yearly_orders == pytest.approx((2 + 1) / (1 + 1 / overall))
    assert float(values["b"].predicted) == pytest.approx(54 * 1.5 * (2 / 3) ** 2, abs=1e-3)


def test_customers_who_only_cancelled_have_no_segment_and_no_value(session: Session) -> None:
    load(session, text_of("C1,A1,T,-1,2011-01-05,6,a,X"), now=NOW)
    list(rollups.refresh(session, rollups.ALL, NOW))

    assert session.scalars(select(CustomerSegment)).all() == []
    assert session.scalars(select(CustomerValue)).all() == []
