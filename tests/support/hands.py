"""A run moved by hand: the dispatcher's and the worker's statements without their processes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from tasks.engine.ledger import SHARD, Change, Claim, Ledger, Settlement, changes
from tenants.context import Principal
from tenants.settings import Engine
from tests.support.installations import Installation

WORKER = "w1@by-hand"


class Hands:
    """Leads the dispatch of an installation that runs no dispatcher, and claims as a worker.

    Args:
        installation: whose database.
        lease_seconds: how long a claim holds; long, so that only `expire` ends it.
    """

    def __init__(self, installation: Installation, *, lease_seconds: float = 3600.0) -> None:
        self.installation = installation
        self.engine = Engine(lease_seconds=lease_seconds)
        self.app = Ledger(installation.addresses.app, self.engine, application="by-hand-app")
        self.system = Ledger(installation.addresses.system, self.engine, application="by-hand-system")
        self.owner = Ledger(installation.addresses.owner, self.engine, application="by-hand-owner")
        self.epoch: int = self.system.call("SELECT take_lead(%s, 'by-hand', %s)", SHARD, timedelta(hours=1))[0][0]
        self._step = timedelta(seconds=self.engine.priority_step_seconds)

    def release(self, principal: Principal, *runs: UUID) -> dict[UUID, int]:
        """Release runs; their new fences, without those that were not waiting."""
        rows = self.system.call(
            "SELECT run_id, fence FROM release_runs(%s, %s, %s, %s)",
            SHARD, self.epoch, [principal.tenant] * len(runs), list(runs),
        )  # fmt: skip
        return dict(rows)

    def take_back(self, principal: Principal, run: UUID, fence: int) -> int:
        """The broker refused this release; how many runs went back."""
        [(count,)] = self.system.call(
            "SELECT unrelease_runs(%s, %s, %s, %s, %s)", SHARD, self.epoch, [principal.tenant], [run], [fence]
        )
        return int(count)

    def requeue(self, unclaimed_seconds: float = 0.0) -> list[Change]:
        """Queue what is due, and what was released that long ago and never claimed."""
        late = self._change("requeue_unclaimed_runs", timedelta(seconds=unclaimed_seconds), 1000)
        return self.queue_due() + late

    def queue_due(self, *of: Principal) -> list[Change]:
        """Queue what is due, of these tenants if any are named."""
        return self._change("queue_due_runs", 1000, [principal.tenant for principal in of] or None)

    def rescue(self) -> list[Change]:
        """Rescue every attempt whose lease has expired."""
        return self._change("rescue_runs", self.engine.max_crashes, self._step, 1000)

    def claim(self, principal: Principal, run: UUID, fence: int, task: str = "diagnostics.echo") -> Claim | None:
        """Claim a release as a worker does."""
        return self.app.claim(principal.tenant, run, fence, task, WORKER, 600)

    def running(
        self, principal: Principal, task: str = "diagnostics.echo", args: dict[str, Any] | None = None
    ) -> tuple[UUID, int]:
        """A new run that has been released and claimed; its id and fence."""
        run = self.installation.trigger(principal, task, args)
        fence = self.release(principal, run)[run]
        assert self.claim(principal, run, fence, task) is not None
        return run, fence

    def settle(self, principal: Principal, run: UUID, fence: int, settlement: Settlement) -> Change:
        """End an attempt."""
        return self.app.settle(principal.tenant, run, fence, settlement)

    def renew(self, run: UUID, fence: int, worker: str = WORKER) -> tuple[str, str | None, float]:
        """Renew a lease: renewed, busy or gone; why it is to stop; seconds to the deadline."""
        return self.app.renew(worker, [run], [fence])[run, fence]

    def expire(self, run: UUID) -> None:
        """Let the run's lease end now."""
        self.owner.call("UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 s' WHERE run_id = %s", run)

    def due(self, run: UUID) -> None:
        """Let a delayed run be due now."""
        self.owner.call("UPDATE runs SET available_at = clock_timestamp() - interval '1 s' WHERE id = %s", run)

    def close(self) -> None:
        """Close the connections."""
        for ledger in (self.app, self.system, self.owner):
            ledger.close()

    def _change(self, function: str, *values: Any) -> list[Change]:
        marks = ", ".join(["%s"] * (len(values) + 2))
        return changes(self.system.call(f"SELECT * FROM {function}({marks})", SHARD, self.epoch, *values))
