"""A tenant has accepted work for hours. Row 44."""

from __future__ import annotations

import pytest

from tenants.context import Principal
from tests.faults.invariants import assert_invariants
from tests.support.installations import Installation, eventually
from tests.support.tiers import Tier

pytestmark = pytest.mark.timeout(300)
_BACKLOG = """
WITH first AS (SELECT * FROM runs WHERE id = %s),
made AS (
  INSERT INTO runs (tenant_id, id, task, queue, args, priority, rank, state, max_attempts, actor_kind, actor,
                    created_at, available_at)
  SELECT tenant_id, overlay(id::text placing lpad(to_hex(n), 12, '0') from 25)::uuid, task, queue, args, priority, rank,
         'QUEUED', max_attempts, actor_kind, actor, created_at, available_at
  FROM first, generate_series(1, %s) n
  RETURNING tenant_id, id
)
INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt) SELECT tenant_id, id, 1, 'QUEUED', 0 FROM made
RETURNING run_id
"""
_CANCEL = """
WITH cancelled AS (
  UPDATE runs SET state = 'CANCELLED', sequence = sequence + 1, finished_at = clock_timestamp()
  WHERE state IN ('QUEUED', 'RELEASED') RETURNING tenant_id, id, sequence, attempt
)
INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt)
SELECT tenant_id, id, sequence, 'CANCELLED', attempt FROM cancelled
"""
_RELEASED_BEFORE = """
SELECT count(*) FROM run_events e
WHERE e.state = 'RELEASED' AND e.tenant_id = %s AND e.at > %s
  AND e.at < (SELECT min(at) FROM run_events WHERE run_id = %s AND state = 'RELEASED')
"""
_ROUNDS = 2
"""What a dispatcher may be in the middle of when the bell rings, and what it decided before it heard it."""


def test_row_44_the_one_run_of_a_tenant_is_released_next_whatever_backlog_another_has(
    installation: Installation, tenant: Principal, other_tenant: Principal, tier: Tier
) -> None:
    first = installation.trigger(tenant, "diagnostics.sleep", {"seconds": 0.1})
    backlog = installation.rows(_BACKLOG, str(first), tier(5_000, 50_000))
    installation.accepted.update({run: tenant.tenant for (run,) in backlog})
    installation.start_worker(concurrency=2)
    installation.start_dispatcher()
    eventually(lambda: installation.rows("SELECT 1 FROM runs WHERE state = 'SUCCEEDED' OFFSET 20"))
    for _ in range(tier(3, 10)):
        one = installation.trigger(other_tenant, "diagnostics.echo")
        ((rung,),) = installation.rows("SELECT clock_timestamp()")
        assert installation.ended(other_tenant, one).state == "SUCCEEDED"
        ((before,),) = installation.rows(_RELEASED_BEFORE, str(tenant.tenant), rung, str(one))
        assert before <= _ROUNDS * 3
    installation.rows(_CANCEL)
    assert_invariants(installation)
