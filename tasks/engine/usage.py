"""What a tenant has used in a month, beside what its plan lets it use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tasks.engine.admission import LimitKind
from tasks.engine.models import Limit
from tenants import identity, keys, members, models, quotas
from tenants.errors import InvalidInput, Issue
from tenants.quotas import Quota

_PERIOD = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")
_WORKER_SECONDS = "workerSeconds"
_THERE = {Quota.KEYS: keys.GOOD, Quota.MEMBERS: members.COUNT}


@dataclass(frozen=True, slots=True)
class QuotaUsage:
    """One quota.

    Args:
        limit: None for no limit.
        used: in the month for what is used up; now for what there is.
        alarmed_at: when 80 % were found to be used, for the first time in the month.
    """

    quota: Quota
    limit: float | None
    used: float
    alarmed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Usage:
    """A month.

    Args:
        period: the month in UTC, such as 2026-11.
        worker_seconds: how long the tenant's attempts have held a worker's slot.
        backlog_limit: the plan's, or the tenant's own where that is less.
        quotas: all there are, with today's limits.
    """

    period: str
    plan: str
    worker_seconds: float
    backlog_limit: float | None
    quotas: dict[Quota, QuotaUsage]


def read(session: Session, period: str | None = None) -> Usage:
    """The tenant's figures of a month, all that has been committed.

    Args:
        period: the month in UTC, such as 2026-11; this one when None.

    Raises:
        InvalidInput: that is no month.
    """
    month = _month(period)
    tenant = identity.tenant(session)
    limits = quotas.every(session)
    waiting = select(func.backlog(tenant.id, None, None, None, None))
    alarms = {
        row.kind: row.alarmed_at for row in session.scalars(select(models.Usage).where(models.Usage.period == month))
    }
    used = {
        Quota.RUNS: quotas.used(session, Quota.RUNS, month),
        Quota.UPLOAD_BYTES: quotas.used(session, Quota.UPLOAD_BYTES, month),
        Quota.BACKLOG: session.scalar(waiting) or 0,
        **{quota: session.scalar(there) or 0 for quota, there in _THERE.items()},
    }
    own = session.scalar(
        select(func.min(Limit.amount)).where(
            Limit.kind == LimitKind.BACKLOG,
            Limit.task.is_(None),
            Limit.queue.is_(None),
            Limit.concurrency_key.is_(None),
        )
    )
    backlog_limits = [limit for limit in (limits.get(Quota.BACKLOG), own) if limit is not None]
    return Usage(
        period=f"{month:%Y-%m}",
        plan=tenant.plan,
        worker_seconds=quotas.used(session, _WORKER_SECONDS, month),
        backlog_limit=min(backlog_limits, default=None),
        quotas={
            quota: QuotaUsage(quota, limits.get(quota), float(used.get(quota, 0)), alarms.get(quota.value))
            for quota in Quota
        },
    )


def _month(period: str | None) -> date:
    if period is None:
        return datetime.now(UTC).date().replace(day=1)
    read_ = _PERIOD.fullmatch(period)
    if read_ is None or read_[1] == "0000":
        message = "must be a month such as 2026-11"
        raise InvalidInput(f"period {message}.", issues=[Issue(("period",), message)])
    return date(int(read_[1]), int(read_[2]), 1)
