"""The life of a run with a real dispatcher and a real worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.engine import runs
from tenants.context import Principal
from tests.support.installations import Installation, eventually


@pytest.fixture(scope="module", autouse=True)
def _processes(installation: Installation) -> Iterator[None]:
    installation.start_dispatcher()
    installation.start_worker()
    installation.lead()
    yield
    installation.stop()


def test_a_run_succeeds_with_its_result_and_its_whole_history(installation: Installation, tenant: Principal) -> None:
    run = installation.trigger(tenant, "diagnostics.echo", {"value": {"a": [1, 2]}})
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.result, ended.attempt) == ("SUCCEEDED", {"a": [1, 2]}, 1)
    assert installation.history(run) == [(1, "QUEUED", 0), (2, "RELEASED", 0), (3, "RUNNING", 1), (4, "SUCCEEDED", 1)]


def test_what_fails_is_tried_again_and_succeeds(installation: Installation, tenant: Principal) -> None:
    run = installation.trigger(tenant, "diagnostics.fail", {"message": "not yet", "times": 2})
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.result, ended.attempt) == ("SUCCEEDED", "succeeded at attempt 3", 3)


def test_a_failure_that_is_not_retryable_is_final_and_told(installation: Installation, tenant: Principal) -> None:
    run = installation.trigger(tenant, "diagnostics.fail", {"message": "no", "retryable": False})
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt) == ("FAILED", 1)
    assert ended.error is not None
    assert (ended.error["type"], ended.error["message"], ended.error["retryable"]) == ("Fail", "no", False)


def test_a_child_that_dies_is_replaced_at_once(installation: Installation, tenant: Principal) -> None:
    run = installation.trigger(tenant, "diagnostics.crash", {"times": 1})
    ended = installation.ended(tenant, run, seconds=5)
    assert (ended.state, ended.result) == ("SUCCEEDED", "survived at attempt 2")


def test_a_run_that_always_crashes_is_a_dead_letter_after_three(installation: Installation, tenant: Principal) -> None:
    run = installation.trigger(tenant, "diagnostics.crash", {})
    ended = installation.ended(tenant, run)
    assert (ended.state, ended.attempt, ended.crashes) == ("FAILED", 3, 3)
    assert ended.error is not None
    assert "SIGKILL" in ended.error["message"]


def test_a_running_run_is_cancelled(installation: Installation, tenant: Principal) -> None:
    run = installation.trigger(tenant, "diagnostics.sleep", {"seconds": 60})
    eventually(lambda: installation.run(tenant, run).state == "RUNNING")
    installation.write(tenant, runs.cancel, run)
    assert installation.ended(tenant, run, seconds=10).state == "CANCELLED"


def test_an_attempt_out_of_time_is_tried_again_and_the_last_one_times_out(
    installation: Installation, tenant: Principal
) -> None:
    run = installation.trigger(tenant, "diagnostics.limited", {"seconds": 30})
    ended = installation.ended(tenant, run, seconds=30)
    assert (ended.state, ended.attempt) == ("TIMED_OUT", 4)


def test_a_delayed_run_waits_in_the_database(installation: Installation, tenant: Principal) -> None:
    run = installation.trigger(tenant, "diagnostics.echo", {}, delay_seconds=1.0)
    assert installation.run(tenant, run).state == "SCHEDULED"
    ended = installation.ended(tenant, run)
    assert ended.started_at is not None
    assert (ended.started_at - ended.created_at).total_seconds() >= 1.0
