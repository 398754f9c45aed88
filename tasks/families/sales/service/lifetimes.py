"""Customer lifetime values: what each customer has brought, and may bring in the next twelve months.

With x repeat orders in the T years since the first order, the last of them after t years:

- the rate of orders is λ = (x + 1) / (T + 1/μ) a year, where μ is the tenant's repeat orders per customer-year: the
  mean of a Poisson rate after x events in T, seen from an exponential prior with mean μ (A. S. C. Ehrenberg's
  purchase model, 1959, with shape 1). A customer of yesterday is thus judged by what customers do in general;
- the customer is still active with probability (t/T)^x, and surely if there was no repeat order yet (D. C.
  Schmittlein and D. G. Morrison, 1985, as used by V. Kumar, *Customer Lifetime Value*, 2008);
- predicted = average order × λ × 1 year × that probability, where the average order is net of cancellations and at
  least 0. It is revenue, not profit, and not discounted.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Double, Numeric, Select, case, cast, func, literal, select
from sqlalchemy.orm import Session

from tasks.families.sales.service import measures

_YEAR_SECONDS = 365.25 * 86_400
_DAY_YEARS = 1 / 365.25


def estimate(session: Session, as_of: datetime) -> Select[Any]:
    """Every customer's historic and predicted value as of a moment; amounts to four decimals."""
    customers = measures.by_customer(as_of).subquery()
    known = select(
        customers,
        cast(customers.c.orders - 1, Double).label("repeats"),
        func.greatest(_years(literal(as_of) - customers.c.first_at), _DAY_YEARS).label("age"),
        _years(customers.c.last_at - customers.c.first_at).label("last_age"),
    ).subquery()
    overall = func.nullif(func.sum(known.c.repeats).over(), 0) / func.sum(known.c.age).over()
    active = case(
        (known.c.repeats == 0, 1.0), else_=func.power(func.least(known.c.last_age / known.c.age, 1), known.c.repeats)
    )
    rated = select(
        known.c.customer,
        known.c.orders,
        known.c.net.label("historic"),
        func.greatest(known.c.net / known.c.orders, 0).label("average_order"),
        active.label("active_probability"),
        func.coalesce((known.c.repeats + 1) / (known.c.age + 1 / overall), 0).label("yearly_orders"),
    ).subquery()
    predicted = rated.c.average_order * cast(rated.c.yearly_orders * rated.c.active_probability, Numeric)
    return select(*rated.c, func.round(predicted, 4).label("predicted"))


def _years(interval: Any) -> Any:
    return cast(func.extract("epoch", interval), Double) / _YEAR_SECONDS
