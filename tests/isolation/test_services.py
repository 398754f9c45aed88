"""Services asked for another tenant's run answer as they do for one that does not exist, and nothing happens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from tasks.engine import explain, figures, runs, switches
from tasks.engine.filters import RunFilter
from tasks.engine.runs import TriggerRequest
from tasks.engine.states import RunState
from tenants import db, ids, pages
from tenants.context import Principal
from tenants.errors import InvalidInput, NotFound
from tests.support.installations import Installation

Service = Callable[[Session, UUID], Any]
BY_ID: dict[str, Service] = {
    "explain": explain.explain,
    "get": runs.get,
    "events": runs.events,
    "cancel": runs.cancel,
    "retry": runs.retry,
}


@dataclass(frozen=True)
class Theirs:
    """Runs of another tenant: one that waits, with everything a filter could ask for, and its siblings."""

    principal: Principal
    waiting: UUID
    all: list[UUID]


@pytest.fixture(scope="module")
def theirs(installation: Installation) -> Theirs:
    principal = installation.tenant("theirs", "diagnostics", "sales")
    made = [
        installation.trigger(principal, "diagnostics.echo", {"value": number}, concurrency_key="k")
        for number in range(3)
    ]
    return Theirs(principal, made[0], made)


@pytest.mark.parametrize("name", BY_ID)
def test_anothers_id_is_answered_as_a_random_one(
    installation: Installation, tenant: Principal, theirs: Theirs, name: str
) -> None:
    before = installation.rows("SELECT r::text FROM runs r ORDER BY id")
    answers = []
    for run in (theirs.waiting, ids.new()):
        with pytest.raises(NotFound) as refused:
            installation.write(tenant, BY_ID[name], run)
        answers.append((str(refused.value), refused.value.code))
    assert answers[0] == answers[1]
    assert installation.rows("SELECT r::text FROM runs r ORDER BY id") == before


@pytest.mark.parametrize("name", ["get", "events"])
def test_the_answer_takes_as_long_as_for_a_random_one(session: Session, theirs: Theirs, name: str) -> None:
    def seconds(run: UUID) -> float:
        started = time.perf_counter()
        with pytest.raises(NotFound):
            BY_ID[name](session, run)
        return time.perf_counter() - started

    taken = [(seconds(theirs.waiting), seconds(ids.new())) for _ in range(200)]
    anothers, nobodys = (statistics.median(column) for column in zip(*taken, strict=True))
    assert abs(anothers - nobodys) < 0.005


def test_lists_of_ids_leave_anothers_out(installation: Installation, tenant: Principal, theirs: Theirs) -> None:
    own = installation.trigger(tenant, "diagnostics.echo")
    asked = [own, *theirs.all, ids.new()]
    found = installation.write(tenant, runs.get_many, asked)
    assert set(found) == {own}
    assert not {"args", "result"} & set(vars(found[own]))  # They may be large: whoever needs them asks.
    assert set(installation.write(tenant, runs.args_of, asked)) == {own}
    assert installation.write(tenant, runs.results_of, asked) == {own: None}
    assert installation.write(tenant, runs.progress_of, asked) == {}
    page = installation.write(tenant, runs.page, RunFilter(ids=asked))
    assert [run.id for run in page.items] == [own]
    assert not {"args", "result"} & set(vars(page.items[0]))


@pytest.mark.parametrize(
    "wanted",
    [
        RunFilter(),
        RunFilter(task_name="diagnostics.echo"),
        RunFilter(family="diagnostics"),
        RunFilter(concurrency_key="k"),
        RunFilter(states=list(RunState)),
    ],
)
def test_no_filter_finds_anothers_runs(
    installation: Installation, tenant: Principal, theirs: Theirs, wanted: RunFilter
) -> None:
    assert installation.write(tenant, runs.page, wanted).items == []
    assert installation.write(tenant, runs.count, wanted, 1000) == 0
    assert len(installation.write(theirs.principal, runs.page, wanted).items) == len(theirs.all)


@pytest.mark.parametrize("direction", ["after", "before"])
def test_anothers_cursor_is_a_place_and_no_key(
    installation: Installation, tenant: Principal, theirs: Theirs, direction: str
) -> None:
    cursors = installation.write(theirs.principal, runs.page, RunFilter()).cursors
    own = installation.trigger(tenant, "diagnostics.echo")
    for cursor in cursors:
        found = installation.write(tenant, runs.page, RunFilter(), **{direction: cursor}).items
        assert {run.id for run in found} <= {own}


def test_a_cursor_of_another_list_is_refused(installation: Installation, tenant: Principal) -> None:
    run = installation.trigger(tenant, "diagnostics.echo")
    event = installation.write(tenant, runs.events, run).cursors[0]
    with pytest.raises(InvalidInput):
        installation.write(tenant, runs.page, RunFilter(), after=event)
    with pytest.raises(InvalidInput):
        installation.write(tenant, runs.events, run, after=pages.encode("run", run))


def test_an_event_wakes_nobody_elses_runs(installation: Installation, tenant: Principal, theirs: Theirs) -> None:
    waiting = installation.trigger(theirs.principal, "diagnostics.echo", delay_seconds=3600)
    installation.rows("UPDATE runs SET state = 'WAITING', wait_event = 'paid' WHERE id = %s", str(waiting))
    assert installation.write(tenant, runs.deliver, "paid") == 0
    assert installation.run(theirs.principal, waiting).state == "WAITING"
    assert installation.write(theirs.principal, runs.deliver, "paid") == 1
    assert installation.run(theirs.principal, waiting).state == "QUEUED"
    installation.write(theirs.principal, runs.cancel, waiting)
    installation.rows("DELETE FROM runs WHERE id = %s", str(waiting))


def test_idempotency_keys_are_each_tenants_own(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    request = TriggerRequest("diagnostics.echo", {"value": 1}, idempotency_key="same")
    ours = installation.write(tenant, runs.trigger, request)
    theirs = installation.write(other_tenant, runs.trigger, request)
    assert (ours.replayed, theirs.replayed) == (False, False)
    assert ours.run.id != theirs.run.id
    assert installation.write(tenant, runs.trigger, request).run.id == ours.run.id


def test_figures_count_the_tenants_own_runs(installation: Installation, tenant: Principal, theirs: Theirs) -> None:
    waiting = {queue.name: queue.waiting for queue in installation.write(tenant, figures.queues)}
    assert waiting["diagnostics"] == 0
    waiting = {queue.name: queue.waiting for queue in installation.write(theirs.principal, figures.queues)}
    assert waiting["diagnostics"] == len(theirs.all)


def test_switching_a_family_on_is_for_one_tenant(
    installation: Installation, new_tenant: Callable[..., Principal]
) -> None:
    ours, theirs = new_tenant("diagnostics"), new_tenant("diagnostics")
    installation.write(ours, switches.enable, "sales")
    assert installation.write(ours, switches.enabled) == {"diagnostics", "sales"}
    assert installation.write(theirs, switches.enabled) == {"diagnostics"}


def test_a_session_without_a_principal_reads_nothing(installation: Installation) -> None:
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    with Session(engine) as session:
        assert runs.get_many(session, [ids.new()]) == {}
        assert runs.page(session, RunFilter()).items == []
    engine.dispose()
