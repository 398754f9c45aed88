"""What tenants go by, as the dispatcher reads it across them: all of it once, and then what has changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tasks.engine.admission import Bucket, Limit, LimitKind, Terms
from tasks.engine.ledger import Ledger
from tasks.engine.models import WHOLE

_READ = """
SELECT s.upto::text, extract(epoch FROM clock_timestamp())::float8, t.id, t.suspended_at IS NOT NULL,
       ARRAY(SELECT task FROM pauses WHERE tenant_id = t.id AND NOT draining),
       (SELECT jsonb_agg(jsonb_build_object(
          'id', id, 'kind', kind, 'amount', amount, 'per_seconds', per_seconds, 'burst', burst, 'task', task,
          'queue', queue, 'concurrency_key', concurrency_key))
        FROM limits WHERE tenant_id = t.id AND kind <> 'BACKLOG')
FROM (SELECT pg_current_snapshot() AS upto) s LEFT JOIN tenants t ON
"""
_ANY = """t.suspended_at IS NOT NULL
OR t.id IN (SELECT tenant_id FROM limits UNION SELECT tenant_id FROM pauses)"""
_CHANGED = """t.changed >= pg_snapshot_xmin(%s::pg_snapshot)
AND NOT pg_visible_in_snapshot(t.changed, %s::pg_snapshot)"""
_ARRIVALS = """
SELECT s.tenant_id, s.limit_id, nullif(s.key, ''), s.arrival
FROM unnest(%s::uuid[], %s::uuid[], %s::text[]) AS u(tenant, id, key)
JOIN limit_states s ON s.tenant_id = u.tenant AND s.limit_id = u.id AND s.key = u.key
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read.

    Args:
        upto: the snapshot of the database that it is of.
        now: the database's clock, seconds since 1970.
        terms: of each tenant that has changed; of all others nothing.
    """

    upto: str
    now: float
    terms: Mapping[UUID, Terms]


def read(ledger: Ledger, since: str | None) -> Reading:
    """The terms of every tenant that has any, or of those that have changed since an earlier reading."""
    rows = ledger.call(_READ + _ANY) if since is None else ledger.call(_READ + _CHANGED, since, since)
    terms = {
        tenant: Terms(
            limits=[_limit(values) for values in limits or ()],
            paused=[task for task in paused if task != WHOLE],
            stopped=suspended or WHOLE in paused,
        )
        for _, _, tenant, suspended, paused, limits in rows
        if tenant is not None
    }
    return Reading(rows[0][0], rows[0][1], terms)


def arrivals(ledger: Ledger, buckets: Collection[Bucket]) -> dict[Bucket, float]:
    """How far these rates are used, as the last releases have saved it; 0 for one that has not been used."""
    tenants, limits, keys = zip(*buckets, strict=True)
    rows = ledger.call(_ARRIVALS, list(tenants), list(limits), [key or "" for key in keys])
    return dict.fromkeys(buckets, 0.0) | {(tenant, limit, key): arrival for tenant, limit, key, arrival in rows}


def _limit(row: Mapping[str, Any]) -> Limit:
    return Limit(
        id=UUID(row["id"]),
        kind=LimitKind(row["kind"]),
        amount=row["amount"],
        per_seconds=row["per_seconds"] or 1.0,
        burst=row["burst"] or 1.0,
        task=row["task"],
        queue=row["queue"],
        key=row["concurrency_key"],
    )
