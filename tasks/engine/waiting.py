"""What waits in the ledger, as the dispatcher reads it across tenants."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from tasks.engine.fairness import Candidate
from tasks.engine.ledger import Ledger

Pair = tuple[UUID, str]
"""A tenant and one of its queues."""

_ACTIVE = """
WITH RECURSIVE pairs AS (
  (SELECT tenant_id, queue FROM runs WHERE state = 'QUEUED' ORDER BY tenant_id, queue LIMIT 1)
  UNION ALL
  SELECT n.tenant_id, n.queue FROM pairs p, LATERAL (
    SELECT r.tenant_id, r.queue FROM runs r
    WHERE r.state = 'QUEUED' AND (r.tenant_id, r.queue) > (p.tenant_id, p.queue)
    ORDER BY r.tenant_id, r.queue LIMIT 1) n
)
SELECT tenant_id, queue FROM pairs
"""
_WAITING = """
SELECT r.rank, r.id, r.tenant_id, r.queue, r.task, r.concurrency_key
FROM unnest(%s::uuid[], %s::text[]) AS u(tenant, queue)
JOIN tenants t ON t.id = u.tenant AND NOT t.paused AND t.suspended_at IS NULL
CROSS JOIN LATERAL (
  SELECT * FROM (
    SELECT rank, id, tenant_id, queue, task, concurrency_key FROM runs
    WHERE tenant_id = u.tenant AND queue = u.queue AND state = 'QUEUED' ORDER BY rank LIMIT %s
  ) heads
) r
"""
_NEXT_DUE = """
SELECT extract(epoch FROM min(available_at) - clock_timestamp())::float8 FROM runs WHERE state = 'SCHEDULED'
"""


def active(ledger: Ledger) -> list[Pair]:
    """Every tenant's queue that holds a QUEUED run: one step in an index for each, however many runs there are."""
    return [(tenant, queue) for tenant, queue in ledger.call(_ACTIVE)]


def heads(ledger: Ledger, pairs: Sequence[Pair], most: int) -> list[Candidate]:
    """The runs at the front of these queues, at most so many of each; none of a paused or suspended tenant."""
    rows = ledger.call(_WAITING, [tenant for tenant, _ in pairs], [queue for _, queue in pairs], most)
    return [Candidate(*row) for row in rows]


def next_due(ledger: Ledger) -> float | None:
    """Seconds until the next delayed run is due; None where there is none."""
    seconds: float | None = ledger.call(_NEXT_DUE)[0][0]
    return seconds
