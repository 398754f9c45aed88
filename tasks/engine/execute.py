"""One attempt from message to settlement: verify the grant, claim, work, settle, tell."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from enum import Enum
from typing import Any

import psycopg2
import structlog
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tasks import registry
from tasks.engine import documents, grants, outcomes, refusals, retry
from tasks.engine.attempts import Attempt, Desk
from tasks.engine.board import Reason, Slot
from tasks.engine.context import RunContext
from tasks.engine.grants import BadGrant, Grant
from tasks.engine.ledger import Change, Claim, Settlement
from tasks.engine.publish import Ended, Notice
from tasks.engine.states import RunState
from tasks.registry import TaskDefinition
from tenants import ids
from tenants.log import blot, hiding

log = structlog.get_logger(__name__)
_LARGEST_RESULT = 1024 * 1024
_LONGEST_MESSAGE = 2000
_POISONS = (MemoryError, RecursionError)
"""Errors that a little more would have made a crash: a run is tried no more often with them than it may crash."""
_NO_CONNECTION_SECONDS = 1.0
_SETTLE_AGAIN_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_running: dict[int, RunContext] = {}
"""The context at work in each of this process's slots, for the soft signal."""


class Ending(Enum):
    """How the attempt ended, for Celery's own bookkeeping."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRY = "retry"
    IGNORE = "ignore"


Finished = Callable[[Change, Settlement, list[Notice]], None]
"""Tells the world what has been committed: result backend, stream, bell."""


def perform(
    desk: Desk, definition: TaskDefinition[Any], headers: dict[str, Any], worker: str, finished: Finished
) -> tuple[Ending, Settlement | None]:
    """Run one released attempt.

    Args:
        headers: the message's, with the grant.
        worker: this worker's name.
        finished: called once the attempt's settlement is committed.
    """
    try:
        grant = grants.read(desk.settings.engine.grant_keys, headers.get(grants.HEADER))
    except BadGrant:
        return Ending.IGNORE, None
    claim = desk.ledger.claim(grant.tenant, grant.run, grant.fence, definition.name, worker, definition.hard_seconds)
    if claim is None:
        log.info("message_stale", run=ids.show("run", grant.run), fence=grant.fence)
        refusals.count_stale(desk.ledger, worker)
        return Ending.IGNORE, None
    if claim.held:
        desk.send([Ended(grant.run, grant.fence, 0.0)])
        return Ending.IGNORE, None
    with hiding():
        return _attempt(desk, definition, grant, claim, finished)


def interrupt() -> None:
    """The soft signal has arrived in this process."""
    for context in list(_running.values()):
        context.interrupt()


def _attempt(
    desk: Desk, definition: TaskDefinition[Any], grant: Grant, claim: Claim, finished: Finished
) -> tuple[Ending, Settlement | None]:
    started = time.monotonic()
    slot = desk.slot()
    desk.board.enter(
        Slot(
            index=slot,
            pid=os.getpid(),
            tenant=grant.tenant,
            run=grant.run,
            fence=grant.fence,
            task=list(registry.definitions()).index(definition.name),
            attempt=claim.attempt,
            max_attempts=claim.max_attempts,
            started=started,
            soft_seconds=definition.soft_seconds,
            hard_seconds=definition.hard_seconds,
            sequence=claim.sequence,
            claimed_at=claim.at.timestamp(),
        )
    )
    held = Attempt(
        tenant=grant.tenant,
        run=grant.run,
        fence=grant.fence,
        definition=definition,
        number=claim.attempt,
        max_attempts=claim.max_attempts,
        sequence=claim.sequence,
        effects_of=claim.effects_of,
        claimed_at=claim.at,
    )
    context = RunContext(held, desk)
    with structlog.contextvars.bound_contextvars(run=context.run_id, task=definition.name, attempt=claim.attempt):
        try:
            _running[slot] = context
            try:
                settlement = _work(context, claim)
                change = _settle(context, settlement)
            except outcomes.Interrupted as interruption:
                if interruption.reason is Reason.FENCED:
                    raise outcomes.Fenced("its lease was not renewed in time") from None
                at_work = desk.board.read(slot)
                assert at_work is not None
                settlement = ended_by(interruption.reason, at_work)
                change = _settle(context, settlement)
            finally:
                _running.pop(slot, None)
        except outcomes.Fenced as error:
            desk.board.leave(slot)
            context.roll_back()
            log.warning("attempt_fenced", reason=str(error))
            desk.send([Ended(grant.run, grant.fence, time.monotonic() - started)])  # All else is others' to tell.
            return Ending.IGNORE, None
        except Exception:
            desk.board.leave(slot)
            raise
        # What ends this process instead, as when its worker is stopped, stays on the board for the keeper to settle.
        desk.board.leave(slot)
        after = context.finish()
        seconds = time.monotonic() - started
        finished(change, settlement, [held.begun, *after, change, Ended(grant.run, grant.fence, seconds)])
        log.info("attempt_ended", state=change.state, seconds=round(seconds, 4))
    return _ending(change), settlement


def ended_by(reason: Reason, slot: Slot) -> Settlement:
    """The settlement of an attempt that was stopped: cancelled, suspended, or out of time and retried by policy."""
    if reason is Reason.CANCELLED:
        return Settlement(RunState.CANCELLED, note="cancelled while running")
    if reason is Reason.SUSPENDED:
        return Settlement(RunState.SCHEDULED, give_back=True, note="the tenant was suspended")
    definition = list(registry.definitions().values())[slot.task]
    seconds = slot.hard_seconds if reason is Reason.HARD_LIMIT else slot.soft_seconds
    message = f"The attempt took longer than its time limit of {seconds:g} s."
    delay = retry.after(definition.retry, outcomes.TimeLimitExceeded, slot.attempt, slot.max_attempts)
    error = {"type": outcomes.TimeLimitExceeded.__name__, "message": message, "retryable": delay is not None}
    if delay is None:
        return Settlement(RunState.TIMED_OUT, error=error, note=message)
    return Settlement(RunState.SCHEDULED, error=error, delay_seconds=delay, note=message)


def _work(context: RunContext, claim: Claim) -> Settlement:
    """Run the body, and say in a settlement how it ended."""
    definition = context.attempt_held.definition
    try:
        args = definition.input.model_validate(claim.args)
    except ValidationError as error:
        return _failed(error, f"The stored arguments no longer fit the task: {error.error_count()} problems.")
    try:
        result = registry.bodies()[definition.name](context, args)
        if isinstance(result, BaseModel):
            result = result.model_dump(mode="json")
        _check_result(result)
        return Settlement(RunState.SUCCEEDED, keep=True, result=result)
    except outcomes.Cancel as outcome:
        return Settlement(RunState.CANCELLED, note=outcome.reason)
    except outcomes.Snooze as outcome:
        note = str(outcome)
        return Settlement(RunState.SCHEDULED, keep=True, delay_seconds=outcome.seconds, give_back=True, note=note)
    except outcomes.Busy as outcome:
        return Settlement(RunState.SCHEDULED, delay_seconds=outcome.seconds, give_back=True, note=str(outcome))
    except outcomes.WaitFor as outcome:
        return Settlement(RunState.WAITING, keep=True, event=outcome.event, note=str(outcome))
    except outcomes.Fail as outcome:
        return _failed(outcome, _said(outcome))
    except outcomes.RetryLater as outcome:
        return _retried(context, outcome, outcome.after_seconds)
    except outcomes.Fenced:
        raise
    except Exception as error:
        log.warning("attempt_failed", exc_info=error)
        return _retried(context, error)


def _check_result(result: Any) -> None:
    try:
        size = len(documents.encode(result))
    except ValueError as error:
        raise outcomes.Fail(f"The result {error}.") from None
    if size > _LARGEST_RESULT:
        raise outcomes.Fail(f"The result is larger than {_LARGEST_RESULT} bytes: store it and return a reference.")


def _settle(context: RunContext, settlement: Settlement) -> Change:
    """Commit the session with the settlement where the outcome keeps it; any other rolls back and settles alone."""
    context.begin_settling()
    if settlement.keep:
        try:
            return context.commit(settlement)
        except outcomes.Fenced:
            raise
        except psycopg2.OperationalError:
            log.warning("settle_delayed")
        except Exception as error:
            log.warning("commit_failed", exc_info=error)
            settlement = _retried(context, error)
    context.roll_back()
    return _settle_alone(context, settlement)


def _settle_alone(context: RunContext, settlement: Settlement) -> Change:
    """Settle without a session; a database that is away for a moment does not cost the attempt."""
    for pause in _SETTLE_AGAIN_SECONDS:
        try:
            return context.commit(settlement)
        except psycopg2.OperationalError:
            time.sleep(pause)
    return context.commit(settlement)


def _failed(error: Exception, message: str) -> Settlement:
    return Settlement(RunState.FAILED, error=_described(error, message, retryable=False), note=type(error).__name__)


def _retried(context: RunContext, error: Exception, after_seconds: float | None = None) -> Settlement:
    """Tried again by policy, after that time if the error tells of one."""
    if isinstance(error, PoolTimeout):  # The fault of those that held its worker's connections.
        note = "waited too long for a connection of its worker"
        return Settlement(RunState.SCHEDULED, delay_seconds=_NO_CONNECTION_SECONDS, give_back=True, note=note)
    policy = context.attempt_held.definition.retry
    most = context.attempt_held.max_attempts
    if isinstance(error, _POISONS):
        most = min(most, context.settings.engine.max_crashes)
    delay = retry.after(policy, type(error), context.attempt, most)
    described = _described(error, _said(error), retryable=policy.for_error(type(error)) is not None)
    if delay is None:
        return Settlement(RunState.FAILED, error=described, note=type(error).__name__)
    delay = delay if after_seconds is None else after_seconds
    note = f"{type(error).__name__}; tried again in {delay:.1f} s"
    return Settlement(RunState.SCHEDULED, error=described, delay_seconds=delay, note=note)


def _said(error: Exception) -> str:
    """What the error says. Some raise another when they are asked, and some say nothing."""
    try:
        return str(error) or type(error).__name__
    except Exception:
        return f"{type(error).__name__}, which can't be shown"


def _described(error: Exception, message: str, *, retryable: bool) -> dict[str, Any]:
    frames = "".join(traceback.format_exception(error))
    return {
        "type": type(error).__name__,
        "message": blot(message)[:_LONGEST_MESSAGE],
        "retryable": retryable,
        "traceback": blot(frames)[-8 * _LONGEST_MESSAGE :],
    }


def _ending(change: Change) -> Ending:
    state = RunState(change.state)
    if state is RunState.SUCCEEDED:
        return Ending.SUCCEEDED
    if state in {RunState.FAILED, RunState.TIMED_OUT}:
        return Ending.FAILED
    return Ending.RETRY if state is RunState.SCHEDULED else Ending.IGNORE
