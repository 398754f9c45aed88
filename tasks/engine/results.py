"""What Celery's result backend shows of a run: the ledger's word, written after the commit, never read back by us."""

from __future__ import annotations

from typing import Any

from celery.backends.base import Backend

from tasks.engine.ledger import Change
from tasks.engine.states import RunState
from tenants import ids

_CELERY_STATES = {
    RunState.SUCCEEDED: "SUCCESS",
    RunState.FAILED: "FAILURE",
    RunState.TIMED_OUT: "FAILURE",
    RunState.CANCELLED: "REVOKED",
    RunState.SCHEDULED: "RETRY",
}


class RunError(Exception):
    """A run failed. Its type and message stand in the ledger."""


def add(
    pipeline: Any, backend: Backend, change: Change, result: Any, error: dict[str, Any] | None, days: float
) -> None:
    """Put the run's result on a Redis pipeline, under Celery's own key and in its own form.

    Args:
        backend: Celery's Redis backend, for its key and its encoding.
        days: how long Redis keeps it.
    """
    state = _CELERY_STATES.get(RunState(change.state))
    if state is None:
        return
    run_id = ids.show("run", change.run)
    value = result if state == "SUCCESS" else backend.prepare_exception(RunError((error or {}).get("type", state)))
    meta = backend._get_result_meta(value, state, None, None)
    key = backend.get_key_for_task(run_id)
    encoded = backend.encode({**meta, "task_id": run_id})
    pipeline.set(key, encoded, ex=int(days * 86_400))
    pipeline.publish(key, encoded)
