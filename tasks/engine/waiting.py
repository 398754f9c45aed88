"""What waits in the ledger, as the dispatcher reads it across tenants."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from tasks.engine.ledger import Change, Ledger
from tasks.engine.lines import Candidate, Line

_LINES = """
WITH RECURSIVE lines AS (
  (SELECT tenant_id, queue, task, coalesce(concurrency_key, '') AS key FROM runs
   WHERE state = 'QUEUED' AND (tenant_id, queue, task, coalesce(concurrency_key, '')) > (%s, %s, %s, %s)
   ORDER BY tenant_id, queue, task, coalesce(concurrency_key, '') LIMIT 1)
  UNION ALL
  SELECT n.* FROM lines l, LATERAL (
    SELECT tenant_id, queue, task, coalesce(concurrency_key, '') FROM runs
    WHERE state = 'QUEUED'
      AND (tenant_id, queue, task, coalesce(concurrency_key, '')) > (l.tenant_id, l.queue, l.task, l.key)
    ORDER BY tenant_id, queue, task, coalesce(concurrency_key, '') LIMIT 1) n
)
SELECT tenant_id, queue, task, key FROM lines LIMIT %s
"""
_FRONTS = """
SELECT u.place, r.rank, r.id
FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS u(tenant, queue, task, key, place)
CROSS JOIN LATERAL (
  SELECT rank, id FROM runs
  WHERE tenant_id = u.tenant AND queue = u.queue AND task = u.task AND coalesce(concurrency_key, '') = u.key
    AND state = 'QUEUED'
  ORDER BY rank LIMIT %s
) r
"""
_CANDIDATES = """
SELECT r.rank, r.id, r.tenant_id, r.queue, r.task, r.concurrency_key
FROM unnest(%s::uuid[], %s::uuid[]) AS u(tenant, run) JOIN runs r ON r.tenant_id = u.tenant AND r.id = u.run
WHERE r.state || '' = 'QUEUED' -- Not to be looked for among all that waits of the tenant.
"""
_NEXT_DUE = """
SELECT extract(epoch FROM min(available_at) - clock_timestamp())::float8 FROM runs WHERE state = 'SCHEDULED'
"""
_WITH_DELAYED = """
WITH RECURSIVE found AS (
  (SELECT tenant_id FROM runs WHERE state = 'SCHEDULED' AND tenant_id > %s ORDER BY tenant_id LIMIT 1)
  UNION ALL
  SELECT n.tenant_id FROM found f, LATERAL (
    SELECT tenant_id FROM runs WHERE state = 'SCHEDULED' AND tenant_id > f.tenant_id ORDER BY tenant_id LIMIT 1) n
)
SELECT tenant_id FROM found LIMIT %s
"""
_BEFORE_ALL = Line(UUID(int=0), "", "", None)


def lines(ledger: Ledger, after: Line | None, most: int) -> list[Line]:
    """The next lines that hold a QUEUED run, in order: one step in an index for each, however many runs there are.

    Args:
        after: go on behind this one.
        most: how many at a time.
    """
    place = after or _BEFORE_ALL
    rows = ledger.call(_LINES, place.tenant, place.queue, place.task, place.key or "", most)
    return [Line(tenant, queue, task, key or None) for tenant, queue, task, key in rows]


def fronts(ledger: Ledger, read: Sequence[Line], most: int) -> list[list[Candidate]]:
    """The runs at the front of each of these lines, at most so many of each."""
    columns = ([line.tenant for line in read], [line.queue for line in read], [line.task for line in read])
    found: list[list[Candidate]] = [[] for _ in read]
    for place, rank, run in ledger.call(_FRONTS, *columns, [line.key or "" for line in read], most):
        found[place - 1].append(Candidate(rank, run, read[place - 1]))
    return found


def candidates(ledger: Ledger, changes: Sequence[Change]) -> list[Candidate]:
    """Those of these runs that wait, with their lines."""
    if not changes:
        return []
    rows = ledger.call(_CANDIDATES, [one.tenant for one in changes], [one.run for one in changes])
    return [Candidate(rank, run, Line(*line)) for rank, run, *line in rows]


def next_due(ledger: Ledger) -> float | None:
    """Seconds until the next delayed run is due; None where there is none."""
    seconds: float | None = ledger.call(_NEXT_DUE)[0][0]
    return seconds


def with_delayed(ledger: Ledger, after: UUID | None, most: int) -> list[UUID]:
    """The next tenants that have delayed runs, due or not.

    Args:
        after: go on behind this one.
        most: how many at a time.
    """
    return [tenant for (tenant,) in ledger.call(_WITH_DELAYED, after or UUID(int=0), most)]
