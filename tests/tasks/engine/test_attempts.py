"""How an attempt ends is a word, and none leaves a run stuck; when and how often it is tried again is the policy's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tasks.engine import limits, runs
from tasks.engine.admission import LimitKind
from tasks.engine.board import Reason
from tasks.engine.context import RunContext
from tasks.engine.execute import Ending
from tasks.engine.limits import LimitRequest
from tasks.engine.models import Run
from tasks.engine.outcomes import Busy, Cancel, Fail, RetryLater, Snooze, TimeLimitExceeded, WaitFor
from tasks.families.diagnostics import service
from tasks.registry import RetryPolicy
from tenants import credentials, ids
from tenants.context import Principal
from tenants.errors import TenantryError
from tests.support.attempts import Attempts, Body
from tests.support.hands import Hands
from tests.support.installations import Installation

DAY = 86_400.0
SILLY: list[Any] = [-1, -0.001, float("nan"), float("inf"), float("-inf"), 367 * DAY, 1e400, "60", None, 10**400]


@pytest.fixture
def attempts(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attempts]:
    made = Attempts(hands, monkeypatch)
    yield made
    made.close()


def _raises(error: BaseException) -> Body:
    def body(ctx: RunContext) -> NoReturn:
        service.mark(ctx.session, "k", "v", ctx.run, ctx.attempt)
        raise error

    return body


def _settled(installation: Installation, tenant: Principal, run: Any) -> tuple[Run, float, int]:
    """The run, the seconds it waits since it was settled, and how many marks it has committed."""
    [(waits,)] = installation.rows(
        "SELECT extract(epoch FROM r.available_at - e.at)::float8 FROM runs r"
        " JOIN run_events e ON e.run_id = r.id AND e.sequence = r.sequence WHERE r.id = %s",
        str(run),
    )
    [(marks,)] = installation.rows("SELECT count(*) FROM diagnostics_marks WHERE run_id = %s", str(run))
    return installation.run(tenant, run), waits, marks


@pytest.mark.parametrize(
    ("error", "state", "ending", "attempt", "marks", "waits"),
    [
        (Cancel("no more"), "CANCELLED", Ending.IGNORE, 1, 0, None),
        (Snooze(120), "SCHEDULED", Ending.RETRY, 0, 1, 120),
        (Snooze(366 * DAY), "SCHEDULED", Ending.RETRY, 0, 1, 366 * DAY),
        (Busy(30, "another"), "SCHEDULED", Ending.RETRY, 0, 0, 30),
        (PoolTimeout("no connection came free"), "SCHEDULED", Ending.RETRY, 0, 0, 1),
        (RetryLater(90), "SCHEDULED", Ending.RETRY, 1, 0, 90),
        (Fail("never"), "FAILED", Ending.FAILED, 1, 0, None),
        (WaitFor("paid"), "WAITING", Ending.IGNORE, 1, 1, None),
        (ValueError("not yet"), "SCHEDULED", Ending.RETRY, 1, 0, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_outcome_is_a_word(
    installation: Installation,
    tenant: Principal,
    attempts: Attempts,
    error: Exception,
    state: str,
    ending: Ending,
    attempt: int,
    marks: int,
    waits: float | None,
) -> None:
    run = attempts.accept(tenant)
    assert attempts.perform(tenant, run, _raises(error)) is ending
    found, waited, committed = _settled(installation, tenant, run)
    assert (found.state, found.attempt, committed) == (state, attempt, marks)
    assert waits is None or waited == pytest.approx(waits, abs=1)
    assert installation.rows("SELECT 1 FROM run_leases WHERE run_id = %s", str(run)) == []


def test_a_run_may_snooze_more_often_than_it_may_be_tried(
    installation: Installation, tenant: Principal, attempts: Attempts
) -> None:
    once = RetryPolicy(attempts=1)
    run = attempts.accept(tenant, once)
    for _ in range(3):
        attempts.perform(tenant, run, _raises(Snooze(5)), once)
        assert (installation.run(tenant, run).state, installation.run(tenant, run).attempt) == ("SCHEDULED", 0)
    assert attempts.perform(tenant, run, lambda ctx: ctx.attempt, once) is Ending.SUCCEEDED
    assert installation.run(tenant, run).result == 1


@pytest.mark.parametrize(
    "word", [Snooze, RetryLater, lambda seconds: Busy(seconds, "x")], ids=["Snooze", "Later", "Busy"]
)
@pytest.mark.parametrize("seconds", SILLY, ids=repr)
def test_who_wants_to_wait_for_a_silly_time_fails_at_once_and_is_told(
    installation: Installation, tenant: Principal, attempts: Attempts, word: Any, seconds: Any
) -> None:
    def body(ctx: RunContext) -> NoReturn:
        raise word(seconds)

    run = attempts.accept(tenant)
    assert attempts.perform(tenant, run, body) is Ending.FAILED
    found = installation.run(tenant, run)
    assert (found.state, found.attempt) == ("FAILED", 1)
    assert found.error is not None
    assert found.error["message"].startswith("A run can wait 0 to 31622400 seconds (366 days), not ")


@pytest.mark.parametrize("event", ["", "x" * 256, "a\0b", "\ud800", 7, None], ids=repr)
def test_who_waits_for_what_is_no_event_fails_at_once_and_is_told(
    installation: Installation, tenant: Principal, attempts: Attempts, event: Any
) -> None:
    def body(ctx: RunContext) -> NoReturn:
        raise WaitFor(event)

    run = attempts.accept(tenant)
    assert attempts.perform(tenant, run, body) is Ending.FAILED
    found = installation.run(tenant, run)
    assert found.error is not None
    assert (found.state, found.attempt, found.error["retryable"]) == ("FAILED", 1, False)
    assert "An event's name must be 1 to 255 characters" in found.error["message"]


class _CannotBeShown(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (_CannotBeShown(), "_CannotBeShown, which can't be shown"),
        (ValueError(), "ValueError"),
        (ValueError("a\0\ud800b"), "a�?b"),
        (ValueError("x" * 3000), "x" * 2000),
    ],
    ids=["cannot be shown", "silent", "unreadable", "long"],
)
def test_whatever_an_error_says_it_is_told(
    installation: Installation, tenant: Principal, attempts: Attempts, error: Exception, said: str
) -> None:
    run = attempts.accept(tenant)
    attempts.perform(tenant, run, _raises(error))
    found = installation.run(tenant, run)
    assert found.error is not None
    assert (found.state, found.error["type"], found.error["message"]) == ("SCHEDULED", type(error).__name__, said)


def test_a_reason_of_any_length_is_told(installation: Installation, tenant: Principal, attempts: Attempts) -> None:
    run = attempts.accept(tenant)
    attempts.perform(tenant, run, _raises(Cancel("x" * 100_000)))
    notes = installation.rows("SELECT note FROM run_events WHERE run_id = %s AND state = 'CANCELLED'", str(run))
    assert notes == [("x" * 2000,)]


class Refused(ConnectionError):
    """A kind of ConnectionError."""


POLICY = RetryPolicy(
    attempts=3,
    base_seconds=100,
    by_error={
        OSError: RetryPolicy(attempts=2, base_seconds=1000, cap_seconds=1000),
        ConnectionError: RetryPolicy(attempts=5, base_seconds=10, factor=3),
        KeyError: None,
    },
)


@pytest.mark.parametrize(
    ("error", "delays"),
    [
        (ValueError("x"), [100, 200]),
        (OSError("x"), [1000]),
        (FileNotFoundError("x"), [1000]),
        (ConnectionError("x"), [10, 30, 90, 270]),
        (Refused("x"), [10, 30, 90, 270]),
        (KeyError("x"), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_the_nearest_class_of_an_error_decides_how_often_and_when_it_is_tried_again(
    installation: Installation, tenant: Principal, attempts: Attempts, error: Exception, delays: list[float]
) -> None:
    run = attempts.accept(tenant, POLICY)
    assert installation.run(tenant, run).max_attempts == 5
    for number, full in enumerate(delays, 1):
        assert attempts.perform(tenant, run, _raises(error), POLICY) is Ending.RETRY
        found, waits, _ = _settled(installation, tenant, run)
        assert (found.state, found.attempt) == ("SCHEDULED", number)
        assert full / 2 - 0.1 <= waits <= full + 0.1
    assert attempts.perform(tenant, run, _raises(error), POLICY) is Ending.FAILED
    found = installation.run(tenant, run)
    assert found.error is not None
    assert (found.state, found.attempt) == ("FAILED", len(delays) + 1)
    assert found.error["retryable"] == bool(delays)


def test_asking_to_be_tried_later_uses_up_attempts(
    installation: Installation, tenant: Principal, attempts: Attempts
) -> None:
    twice = RetryPolicy(attempts=2)
    run = attempts.accept(tenant, twice)
    assert attempts.perform(tenant, run, _raises(RetryLater(1)), twice) is Ending.RETRY
    assert attempts.perform(tenant, run, _raises(RetryLater(1)), twice) is Ending.FAILED


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep")], ids=["memory", "recursion"])
def test_an_error_that_was_nearly_a_crash_is_tried_as_often_as_a_crash(
    installation: Installation, tenant: Principal, attempts: Attempts, error: Exception
) -> None:
    many = RetryPolicy(attempts=10)
    run = attempts.accept(tenant, many)
    endings = [attempts.perform(tenant, run, _raises(error), many) for _ in range(3)]
    assert endings == [Ending.RETRY, Ending.RETRY, Ending.FAILED]
    found = installation.run(tenant, run)
    assert found.error is not None
    assert (found.attempt, found.error["type"]) == (3, type(error).__name__)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ValueError("x"), "SCHEDULED"),
        (RetryLater(50), "SCHEDULED"),
        (RetryLater(61), "FAILED"),
        (Snooze(61), "SCHEDULED"),
    ],
    ids=["in time", "asked for in time", "asked for too late", "snoozed"],
)
def test_no_retry_is_scheduled_past_the_time_there_is(
    installation: Installation, tenant: Principal, attempts: Attempts, error: Exception, state: str
) -> None:
    policy = RetryPolicy(base_seconds=1, max_elapsed_seconds=60)
    run = attempts.accept(tenant, policy)
    attempts.perform(tenant, run, _raises(error), policy)
    found = installation.run(tenant, run)
    assert (found.state, found.finished_at is None) == (state, state != "FAILED")
    if state == "FAILED":
        told = (
            "asked to be tried again (not tried again: no attempt may begin later than 60 s after the run was accepted)"
        )
        assert found.error is not None
        assert (found.error["message"], found.error["type"]) == (told, "RetryLater")


def test_what_ran_out_of_its_attempts_time_and_has_no_time_left_has_timed_out(
    installation: Installation, hands: Hands, tenant: Principal, attempts: Attempts
) -> None:
    policy = RetryPolicy(max_elapsed_seconds=60)
    run = attempts.accept(tenant, policy)
    hands.owner.call("UPDATE runs SET retry_until = clock_timestamp() WHERE id = %s", run)
    attempts.perform(tenant, run, _stopped(attempts), policy)
    found = installation.run(tenant, run)
    assert found.error is not None
    assert (found.state, found.error["type"]) == ("TIMED_OUT", "TimeLimitExceeded")
    assert "not tried again" in found.error["message"]


def test_a_crash_that_leaves_no_time_is_the_last(
    installation: Installation, hands: Hands, tenant: Principal, attempts: Attempts
) -> None:
    run = attempts.accept(tenant, RetryPolicy(max_elapsed_seconds=60))
    fence = hands.release(tenant, run)[run]
    assert hands.claim(tenant, run, fence) is not None
    hands.owner.call("UPDATE runs SET retry_until = clock_timestamp() WHERE id = %s", run)
    change = hands.app.report_crash(tenant.tenant, run, fence, "signal: SIGSEGV")
    assert change is not None
    found = installation.run(tenant, run)
    assert found.error is not None
    assert (found.state, found.crashes, found.finished_at is None) == ("FAILED", 1, False)
    assert found.error["message"].startswith("signal: SIGSEGV (not tried again")


def _stopped(attempts: Attempts) -> Body:
    """The keeper tells the attempt that its time is over."""

    def body(ctx: RunContext) -> None:
        [slot] = attempts.board.active()
        attempts.board.give_reason(slot, Reason.SOFT_LIMIT)
        ctx.checkpoint()

    return body


@pytest.mark.parametrize(
    ("policy", "state"),
    [
        (RetryPolicy(), "SCHEDULED"),
        (RetryPolicy(attempts=1), "TIMED_OUT"),
        (RetryPolicy(by_error={TimeLimitExceeded: None}), "TIMED_OUT"),
    ],
    ids=["tried again", "last", "never"],
)
def test_an_attempt_that_is_out_of_time_is_tried_again_by_policy(
    installation: Installation, tenant: Principal, attempts: Attempts, policy: RetryPolicy, state: str
) -> None:
    run = attempts.accept(tenant, policy)
    attempts.perform(tenant, run, _stopped(attempts), policy)
    assert installation.run(tenant, run).state == state


def test_an_extension_moves_both_limits_and_lets_the_transaction_wait_as_long(
    tenant: Principal, attempts: Attempts
) -> None:
    def idle(ctx: RunContext) -> str:
        return str(ctx.session.scalar(text("SHOW idle_in_transaction_session_timeout")))

    def body(ctx: RunContext) -> None:
        [before] = attempts.board.active()
        assert idle(ctx) == "61min"
        ctx.extend(59 * 60)
        assert idle(ctx) == "2h"
        ctx.session.commit()
        assert idle(ctx) == "2h"
        [after] = attempts.board.active()
        assert after.soft_seconds - before.soft_seconds == after.hard_seconds - before.hard_seconds == 59 * 60
        [(lasts,)] = ctx.desk.ledger.call(
            "SELECT extract(epoch FROM deadline_at - clock_timestamp())::float8 FROM"
            " (SELECT set_config('app.tenant_id', %s, false)) AS entered, run_leases WHERE run_id = %s",
            str(ctx.tenant),
            ctx.run,
        )
        assert lasts == pytest.approx(2 * 3600, abs=30)

    assert attempts.perform(tenant, attempts.accept(tenant), body) is Ending.SUCCEEDED


def test_no_attempt_extends_its_time_beyond_a_day(tenant: Principal, attempts: Attempts) -> None:
    def body(ctx: RunContext) -> None:
        limits = []
        for _ in range(30):
            ctx.extend(2 * 3600)
            [slot] = attempts.board.active()
            limits.append(slot.hard_seconds)
        assert limits[:2] == [3660 + 3600, 3660 + 7200]
        assert limits[-1] == DAY

    assert attempts.perform(tenant, attempts.accept(tenant), body) is Ending.SUCCEEDED


@pytest.mark.parametrize("seconds", [0, -5, float("nan"), float("-inf")])
def test_time_is_extended_by_some_time(
    installation: Installation, tenant: Principal, attempts: Attempts, seconds: float
) -> None:
    run = attempts.accept(tenant)
    assert attempts.perform(tenant, run, lambda ctx: ctx.extend(seconds)) is Ending.RETRY
    error = installation.run(tenant, run).error
    assert error is not None
    assert "extended by more than 0 seconds" in error["message"]


def test_what_a_task_triggers_is_accepted_with_its_end_and_holds_up_nobody_before(
    installation: Installation, tenant: Principal, attempts: Attempts
) -> None:
    installation.write(tenant, limits.put, LimitRequest("some", LimitKind.BACKLOG, 3))
    made: list[str] = []

    def body(ctx: RunContext) -> None:
        made.append(ctx.trigger("echo", {"value": 1}))
        made.append(ctx.trigger("diagnostics.echo", {"value": 2}, delay_seconds=3600))
        for given in ({"value": 1, "other": 1}, {"value": 1}):
            with pytest.raises(TenantryError):
                ctx.trigger("diagnostics.echo", given, queue="nowhere")
        installation.write(tenant, runs.cancel, installation.trigger(tenant, "diagnostics.echo"))

    run = attempts.accept(tenant)
    assert attempts.perform(tenant, run, body) is Ending.SUCCEEDED
    kept = [installation.run(tenant, ids.read("run", shown)) for shown in made]
    assert [(one.args, one.state, one.actor_kind) for one in kept] == [
        ({"value": 1}, "QUEUED", "RUN"),
        ({"value": 2}, "SCHEDULED", "RUN"),
    ]


@pytest.mark.parametrize("most", [1, 10], ids=["no room", "failed"])
def test_what_a_task_triggers_is_not_accepted_where_the_task_does_not_end_well(
    installation: Installation, tenant: Principal, attempts: Attempts, most: int
) -> None:
    installation.write(tenant, limits.put, LimitRequest("some", LimitKind.BACKLOG, most))

    def body(ctx: RunContext) -> None:
        service.mark(ctx.session, "k", "v", ctx.run, ctx.attempt)
        for _ in range(2):
            ctx.trigger("diagnostics.echo")
        if most > 2:
            raise ValueError

    run = attempts.accept(tenant)
    attempts.perform(tenant, run, body)
    found, _, marks = _settled(installation, tenant, run)
    assert found.error is not None
    assert (found.state, found.error["type"], marks) == ("SCHEDULED", "QuotaExceeded" if most == 1 else "ValueError", 0)
    assert installation.rows("SELECT count(*) FROM runs WHERE tenant_id = %s", str(tenant.tenant)) == [(1,)]


def test_a_tenants_task_has_no_door_to_other_tenants(
    installation: Installation, tenant: Principal, attempts: Attempts
) -> None:
    def body(ctx: RunContext) -> None:
        assert ctx.system

    run = attempts.accept(tenant)
    assert attempts.perform(tenant, run, body) is Ending.FAILED
    found = installation.run(tenant, run)
    assert found.error is not None
    assert found.error["message"] == "This task is not for operators only."


def test_who_was_told_that_it_is_replaced_settles_nothing(
    installation: Installation, tenant: Principal, attempts: Attempts
) -> None:
    def body(ctx: RunContext) -> None:
        [slot] = attempts.board.active()
        attempts.board.give_reason(slot, Reason.FENCED)
        ctx.checkpoint()

    run = attempts.accept(tenant)
    assert attempts.perform(tenant, run, body) is Ending.IGNORE
    assert installation.states(run)[-1] == "RUNNING"


def test_a_signal_that_comes_after_the_task_has_noticed_interrupts_nothing_more(
    installation: Installation, tenant: Principal, attempts: Attempts
) -> None:
    def body(ctx: RunContext) -> None:
        [slot] = attempts.board.active()
        attempts.board.give_reason(slot, Reason.CANCELLED)
        try:
            ctx.checkpoint()
        finally:
            ctx.interrupt()

    run = attempts.accept(tenant)
    attempts.perform(tenant, run, body)
    assert installation.run(tenant, run).state == "CANCELLED"


def _done_outside(done: list[str], answer: int = 1) -> Body:
    def call(idempotency_key: str) -> int:
        done.append(idempotency_key)
        return answer

    return lambda ctx: ctx.effect("mail", call)


@pytest.mark.parametrize(
    ("args", "again", "calls"),
    [
        (None, False, 1),
        ({"value": 1}, False, 1),
        ({"value": 2}, False, 2),
        (None, True, 2),
        ({"value": 1}, True, 2),
    ],
)
def test_a_repetition_shares_the_effects_of_the_same_work_only(
    installation: Installation, tenant: Principal, attempts: Attempts, args: Any, again: bool, calls: int
) -> None:
    done: list[str] = []
    first = installation.trigger(tenant, "diagnostics.echo", {"value": 1})
    attempts.perform(tenant, first, _done_outside(done))
    second = installation.write(tenant, runs.retry, first, args, repeat_effects=again)
    assert second.origin_id == first
    attempts.perform(tenant, second.id, _done_outside(done, 2))
    assert len(done) == len(set(done)) == calls
    assert installation.run(tenant, second.id).result == calls
    third = installation.write(tenant, runs.retry, second.id)
    assert third.origin_id == first
    attempts.perform(tenant, third.id, _done_outside(done, 3))
    assert installation.run(tenant, third.id).result == calls


def test_a_cancel_that_was_accepted_comes_before_an_effect(
    installation: Installation, tenant: Principal, attempts: Attempts
) -> None:
    done: list[str] = []

    def body(ctx: RunContext) -> int:
        installation.write(tenant, runs.cancel, ctx.run)
        return int(_done_outside(done)(ctx))

    run = attempts.accept(tenant)
    attempts.perform(tenant, run, body)
    assert (installation.run(tenant, run).state, done) == ("CANCELLED", [])


def test_a_credential_that_a_task_was_given_stands_in_nothing_that_is_written_down(
    installation: Installation, attempts: Attempts, tenant: Principal
) -> None:
    secret = "4eC39HqLyjWDarjtT1zdp7dc"
    ring = installation.settings.auth.credential_keys
    installation.write(tenant, credentials.put, ring, "stripe", "api_key", SecretStr(secret))
    used = []

    def body(ctx: RunContext) -> NoReturn:
        used.append(ctx.credential("stripe").get_secret_value())
        ctx.progress(1, 2, f"signs in with {used[0]}")
        raise Fail(f"The provider refused {used[0]} at postgresql://app:hunter2@db/x.")

    run = attempts.accept(tenant)
    attempts.perform(tenant, run, body)
    assert used == [secret]
    [(error,)] = installation.rows("SELECT error FROM runs WHERE id = %s", str(run))
    assert error["message"] == "The provider refused [redacted] at postgresql://[redacted]@db/x."
    written = installation.rows(
        "SELECT r::text FROM runs r WHERE id = %s UNION ALL SELECT e::text FROM run_events e WHERE run_id = %s"
        " UNION ALL SELECT p::text FROM run_progress p WHERE run_id = %s",
        str(run), str(run), str(run),
    )  # fmt: skip
    assert len(written) > 3
    assert secret not in str(written)
    assert "hunter2" not in str(written)


def test_no_secret_of_one_tenant_alters_what_the_next_attempt_of_another_says(
    installation: Installation, attempts: Attempts, tenant: Principal, other_tenant: Principal
) -> None:
    ring = installation.settings.auth.credential_keys
    installation.write(tenant, credentials.put, ring, "word", "api_key", SecretStr("customer"))

    def say(ctx: RunContext) -> NoReturn:
        raise Fail("There is no customer 17.")

    def reveal(ctx: RunContext) -> NoReturn:
        ctx.credential("word")
        say(ctx)

    said = []
    for principal, body in ((tenant, reveal), (other_tenant, say)):
        run = attempts.accept(principal)
        attempts.perform(principal, run, body)
        said += installation.rows("SELECT error ->> 'message' FROM runs WHERE id = %s", str(run))
    assert said == [("There is no [redacted] 17.",), ("There is no customer 17.",)]
