"""Accepting runs: checked first, all or none, once for each key, and due when it was asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from tasks.engine import runs, switches
from tasks.engine.lines import Candidate, Line
from tasks.engine.publish import Bell
from tasks.engine.runs import Accepted, TriggerRequest
from tasks.registry import OPERATOR_QUEUE
from tenants import db, ids
from tenants.context import ActorKind, Principal, Scope
from tenants.errors import Conflict, Forbidden, InvalidInput, TenantryError, TenantSuspended, UnknownTask
from tests.support.installations import Installation

ECHO = TriggerRequest("diagnostics.echo", {"value": 1})
Trigger = Callable[..., Accepted]


@pytest.fixture
def trigger(installation: Installation, tenant: Principal) -> Trigger:
    """Triggers in the tenant: a request, or the echo with some of its fields replaced."""
    return lambda request=ECHO, **fields: installation.write(tenant, runs.trigger, replace(request, **fields))


def _count(installation: Installation, principal: Principal) -> int:
    [(count,)] = installation.rows("SELECT count(*) FROM runs WHERE tenant_id = %s", str(principal.tenant))
    return int(count)


def _refused(
    installation: Installation, principal: Principal, error: type[TenantryError], request: TriggerRequest
) -> Any:
    """The error that a request is refused with; nothing is left of it."""
    before = _count(installation, principal)
    with pytest.raises(error) as refused:
        installation.write(principal, runs.trigger, request)
    assert _count(installation, principal) == before
    assert installation.rows("SELECT * FROM idempotency_keys WHERE tenant_id = %s", str(principal.tenant)) == []
    return refused.value


def test_an_accepted_run_has_its_first_event_and_who_asked_for_it(
    installation: Installation, tenant: Principal, trigger: Trigger
) -> None:
    run = trigger(priority=7, concurrency_key="k").run
    assert (run.state, run.sequence, run.attempt, run.fence) == ("QUEUED", 1, 0, 0)
    assert (run.args, run.priority, run.concurrency_key, run.queue) == ({"value": 1}, 7, "k", "diagnostics")
    assert (run.actor_kind, run.actor) == ("API_KEY", tenant.actor)
    assert installation.history(run.id) == [(1, "QUEUED", 0)]


async def test_a_thousand_runs_are_one_statement(installation: Installation, tenant: Principal) -> None:
    database = db.AsyncDatabase(installation.settings.database)
    statements: list[str] = []

    def listen(connection: Any, *_: object) -> None:
        connection.driver_connection.add_query_logger(lambda asked: statements.append(asked.query))

    event.listen(database.engine.sync_engine, "connect", listen)
    left: list[object] = []

    async def after_commit(notices: list[object]) -> None:
        left.extend(notices)

    scope = Scope(tenant, database, after_commit)
    await scope.write(runs.trigger_many, [ECHO])  # The first one opens the connection.
    await asyncio.sleep(0)  # The driver tells of a statement a moment after it.
    statements.clear()
    accepted = await scope.write(runs.trigger_many, [ECHO] * 1000)
    await database.close()
    assert (len(accepted), len(statements)) == (1000, 1)
    assert len([notice for notice in left if isinstance(notice, Bell)]) == 2


def test_an_accepted_run_rings_the_bell_once_and_a_replay_does_not(
    installation: Installation, tenant: Principal
) -> None:
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    bells = []
    for _ in range(2):
        with db.open_session(engine, tenant) as session:
            run = runs.trigger(session, replace(ECHO, idempotency_key="once")).run
            bells.append([notice for notice in db.notices(session) if isinstance(notice, Bell)])
            session.commit()
    engine.dispose()
    line = Line(tenant.tenant, "diagnostics", "diagnostics.echo", None)
    assert bells == [[Bell(line, Candidate(run.rank, run.id, line))], []]


def test_a_delayed_run_rings_no_bell_and_many_ring_once_for_each_line(
    installation: Installation, tenant: Principal
) -> None:
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    keyed = replace(ECHO, concurrency_key="k")
    with db.open_session(engine, tenant) as session:
        runs.trigger_many(session, [ECHO, ECHO, keyed, keyed, replace(ECHO, concurrency_key="late", delay_seconds=60)])
        bells = {notice for notice in db.notices(session) if isinstance(notice, Bell)}
        session.commit()
    engine.dispose()
    assert bells == {Bell(Line(tenant.tenant, "diagnostics", "diagnostics.echo", key)) for key in (None, "k")}


class TestIdempotency:
    """The same key and the same arguments: the same run."""

    def test_the_same_again_is_the_first_run(
        self, installation: Installation, tenant: Principal, trigger: Trigger
    ) -> None:
        first, second = trigger(idempotency_key="key"), trigger(idempotency_key="key")
        assert (first.replayed, second.replayed) == (False, True)
        assert second.run.id == first.run.id
        assert second.run.args == first.run.args
        assert _count(installation, tenant) == 1

    def test_the_order_of_arguments_does_not_matter(self, trigger: Trigger) -> None:
        one = TriggerRequest("diagnostics.write", {"key": "a", "value": "b"}, idempotency_key="key")
        other = replace(one, args={"value": "b", "key": "a"})
        assert trigger(other).run.id == trigger(one).run.id

    @pytest.mark.parametrize(
        "other",
        [
            replace(ECHO, args={"value": 2}),
            replace(ECHO, args={}),
            TriggerRequest("diagnostics.sleep", {"seconds": 1}),
        ],
    )
    def test_something_else_under_the_key_is_a_conflict_that_names_the_first(
        self, installation: Installation, tenant: Principal, trigger: Trigger, other: TriggerRequest
    ) -> None:
        first = trigger(idempotency_key="key")
        with pytest.raises(Conflict) as refused:
            trigger(replace(other, idempotency_key="key"))
        assert refused.value.existing == first.run.id
        assert _count(installation, tenant) == 1

    def test_fifty_at_once_make_one_run(self, installation: Installation, tenant: Principal) -> None:
        start = threading.Barrier(50)

        def one(_: int) -> Accepted:
            start.wait(30)
            return installation.write(tenant, runs.trigger, replace(ECHO, idempotency_key="race"))

        with ThreadPoolExecutor(50) as pool:
            accepted = list(pool.map(one, range(50)))
        assert len({one.run.id for one in accepted}) == 1
        assert sorted(one.replayed for one in accepted) == [False] + [True] * 49
        assert _count(installation, tenant) == 1

    def test_a_run_of_a_transaction_that_fails_keeps_no_key(
        self, installation: Installation, tenant: Principal, trigger: Trigger
    ) -> None:
        engine = db.sync_engine(installation.addresses.app, pool_size=1)
        with db.open_session(engine, tenant) as session:
            runs.trigger(session, replace(ECHO, idempotency_key="key"))
            session.rollback()
        engine.dispose()
        assert not trigger(idempotency_key="key").replayed

    def test_a_key_whose_time_is_over_makes_a_new_run(
        self, installation: Installation, tenant: Principal, trigger: Trigger
    ) -> None:
        first = trigger(idempotency_key="key")
        installation.rows("UPDATE idempotency_keys SET expires_at = clock_timestamp() WHERE key = 'key'")
        second = trigger(args={"value": "other"}, idempotency_key="key")
        assert not second.replayed
        assert second.run.id != first.run.id
        assert trigger(args={"value": "other"}, idempotency_key="key").run.id == second.run.id

    def test_a_key_lasts_a_day(self, installation: Installation, tenant: Principal, trigger: Trigger) -> None:
        trigger(idempotency_key="key")
        [(hours,)] = installation.rows(
            "SELECT extract(epoch FROM expires_at - clock_timestamp()) / 3600 FROM idempotency_keys"
            " WHERE tenant_id = %s",
            str(tenant.tenant),
        )
        assert 23.9 < hours <= 24

    def test_a_key_outlives_the_run_it_stood_for(
        self, installation: Installation, tenant: Principal, trigger: Trigger
    ) -> None:
        first = trigger(idempotency_key="key")
        installation.write(tenant, runs.cancel, first.run.id)
        assert trigger(idempotency_key="key").run.id == first.run.id
        installation.rows("SELECT prune_runs(%s, clock_timestamp() + interval '1 day')", str(tenant.tenant))
        second = trigger(idempotency_key="key")
        assert (second.replayed, second.run.id == first.run.id) == (False, False)
        assert trigger(idempotency_key="key").run.id == second.run.id

    @pytest.mark.parametrize("key", ["", "x" * 256, "a\0b", "\ud800"])
    def test_what_is_no_key_is_refused(self, installation: Installation, tenant: Principal, key: str) -> None:
        refused = _refused(installation, tenant, InvalidInput, replace(ECHO, idempotency_key=key))
        assert [issue.path for issue in refused.issues] == [("idempotencyKey",)]

    @pytest.mark.parametrize("key", ["x", "x" * 255, "ключ", "🔑", " ", "'; DROP TABLE runs; --", "\\", "%s"])
    def test_any_other_text_is_a_key(self, trigger: Trigger, key: str) -> None:
        first = trigger(idempotency_key=key)
        assert trigger(idempotency_key=key).run.id == first.run.id
        assert first.run.idempotency_key == key


class TestManyAtOnce:
    """A list is accepted as a whole, in its order, or not at all."""

    def test_all_are_accepted_in_their_order(self, installation: Installation, tenant: Principal) -> None:
        wanted = [replace(ECHO, args={"value": number}) for number in range(100)]
        accepted = installation.write(tenant, runs.trigger_many, wanted)
        assert [one.run.args["value"] for one in accepted] == list(range(100))
        assert _count(installation, tenant) == 100

    def test_one_wrong_value_and_none_is_accepted(self, installation: Installation, tenant: Principal) -> None:
        wanted = [ECHO, ECHO, replace(ECHO, args={"value": 1, "other": 2}), ECHO]
        with pytest.raises(InvalidInput) as refused:
            installation.write(tenant, runs.trigger_many, wanted)
        assert [issue.path for issue in refused.value.issues] == [("2", "args", "other")]
        assert _count(installation, tenant) == 0

    def test_one_conflict_and_none_is_accepted(
        self, installation: Installation, tenant: Principal, trigger: Trigger
    ) -> None:
        first = trigger(idempotency_key="taken")
        wanted = [ECHO, replace(ECHO, args={"value": 2}, idempotency_key="taken"), replace(ECHO, idempotency_key="new")]
        with pytest.raises(Conflict) as refused:
            installation.write(tenant, runs.trigger_many, wanted)
        assert refused.value.existing == first.run.id
        assert _count(installation, tenant) == 1
        assert not trigger(idempotency_key="new").replayed

    def test_a_key_twice_in_a_list_is_one_run(self, installation: Installation, tenant: Principal) -> None:
        wanted = [replace(ECHO, idempotency_key="same")] * 2
        first, second = installation.write(tenant, runs.trigger_many, wanted)
        assert (first.replayed, second.replayed) == (False, True)
        assert first.run.id == second.run.id
        assert _count(installation, tenant) == 1

    def test_too_many_are_refused_and_none_is_none(self, installation: Installation, tenant: Principal) -> None:
        with pytest.raises(InvalidInput, match="At most 1000"):
            installation.write(tenant, runs.trigger_many, [ECHO] * 1001)
        assert installation.write(tenant, runs.trigger_many, []) == []
        assert _count(installation, tenant) == 0

    def test_two_lists_with_the_same_keys_in_other_orders_do_not_hold_each_other_up(
        self, installation: Installation, tenant: Principal
    ) -> None:
        keys = [f"key-{number}" for number in range(200)]
        start = threading.Barrier(8)

        def one(number: int) -> list[Accepted]:
            order = keys if number % 2 else keys[::-1]
            start.wait(30)
            return installation.write(tenant, runs.trigger_many, [replace(ECHO, idempotency_key=key) for key in order])

        with ThreadPoolExecutor(8) as pool:
            accepted = [one for part in pool.map(one, range(8)) for one in part]
        assert _count(installation, tenant) == len(keys)
        assert sum(not one.replayed for one in accepted) == len(keys)


class TestTimes:
    """Delays wait in the ledger, and priority is a head start."""

    @pytest.mark.parametrize("by", ["delay_seconds", "eta"])
    def test_a_later_run_is_scheduled(self, trigger: Trigger, by: str) -> None:
        later: dict[str, Any] = {"delay_seconds": 60.0, "eta": datetime.now(UTC) + timedelta(seconds=60)}
        run = trigger(**{by: later[by]}).run
        assert run.state == "SCHEDULED"
        assert 50 < (run.available_at - run.created_at).total_seconds() < 61

    def test_an_eta_is_the_same_moment_in_any_zone(self, trigger: Trigger) -> None:
        eta = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
        run = trigger(eta=eta.astimezone(timezone(timedelta(hours=5, minutes=45)))).run
        assert run.available_at == eta

    @pytest.mark.parametrize("eta", [datetime(1970, 1, 1, tzinfo=UTC), datetime.min.replace(tzinfo=UTC)])
    def test_a_moment_that_has_passed_is_now_and_no_head_start(self, trigger: Trigger, eta: datetime) -> None:
        run = trigger(eta=eta, priority=0).run
        assert run.state == "QUEUED"
        assert run.available_at == run.created_at == run.rank

    def test_priority_is_a_minute_of_head_start_for_each_step(self, trigger: Trigger) -> None:
        for priority in range(10):
            run = trigger(priority=priority).run
            assert run.available_at - run.rank == timedelta(minutes=priority)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"delay_seconds": -1.0}, "delaySeconds"),
            ({"delay_seconds": float("nan")}, "delaySeconds"),
            ({"delay_seconds": float("inf")}, "delaySeconds"),
            ({"delay_seconds": 366 * 86_400 + 1.0}, "delaySeconds"),
            ({"eta": datetime(2030, 1, 1)}, "eta"),
            ({"eta": datetime.now(UTC) + timedelta(days=367)}, "eta"),
            ({"eta": datetime.max.replace(tzinfo=UTC)}, "eta"),
            ({"eta": datetime.now(UTC), "delay_seconds": 1.0}, "eta"),
            ({"priority": -1}, "priority"),
            ({"priority": 10}, "priority"),
            ({"queue": "nowhere"}, "queue"),
            ({"queue": OPERATOR_QUEUE}, "queue"),
            ({"concurrency_key": ""}, "concurrencyKey"),
            ({"concurrency_key": "x" * 256}, "concurrencyKey"),
        ],
    )
    def test_a_wrong_value_is_told_by_its_name(
        self, installation: Installation, tenant: Principal, options: dict[str, Any], named: str
    ) -> None:
        refused = _refused(installation, tenant, InvalidInput, replace(ECHO, **options))
        assert [issue.path for issue in refused.issues] == [(named,)]
        assert str(refused).startswith(f"{named}: ")


class TestArguments:
    """Checked against the task's input, before there is a row."""

    @pytest.mark.parametrize(
        ("task", "args", "path"),
        [
            ("diagnostics.echo", {"other": 1}, ("args", "other")),
            ("diagnostics.echo", {"__proto__": 1}, ("args", "__proto__")),
            ("diagnostics.sleep", {}, ("args", "seconds")),
            ("diagnostics.sleep", {"seconds": "soon"}, ("args", "seconds")),
            ("diagnostics.sleep", {"seconds": -1}, ("args", "seconds")),
            ("diagnostics.effect", {"key": "k", "url": "nowhere"}, ("args", "url")),
            ("diagnostics.echo", {"value": "x" * 128 * 1024}, ("args",)),
            ("diagnostics.echo", {"value": "a\0b"}, ("args",)),
            ("diagnostics.echo", {"value": {"a\0b": 1}}, ("args",)),
            ("diagnostics.echo", {"value": "\ud800"}, ("args",)),
            ("diagnostics.echo", {"value": 2**64}, ("args",)),
            ("diagnostics.echo", {"value": float("nan")}, ("args",)),
            ("diagnostics.echo", {"value": float("inf")}, ("args",)),
        ],
    )
    def test_what_does_not_fit_is_refused_where_it_stands(
        self, installation: Installation, tenant: Principal, task: str, args: dict[str, Any], path: tuple[str, ...]
    ) -> None:
        refused = _refused(installation, tenant, InvalidInput, TriggerRequest(task, args))
        assert path in {issue.path[: len(path)] for issue in refused.issues}
        assert "\n" not in str(refused)

    def test_a_depth_of_a_thousand_is_refused(self, installation: Installation, tenant: Principal) -> None:
        value: Any = 1
        for _ in range(1000):
            value = [value]
        _refused(installation, tenant, InvalidInput, replace(ECHO, args={"value": value}))

    def test_all_that_is_wrong_is_told_at_once(self, installation: Installation, tenant: Principal) -> None:
        wrong = replace(ECHO, args={"a": 1, "b": 2}, priority=10, queue="nowhere", delay_seconds=-1.0)
        refused = _refused(installation, tenant, InvalidInput, wrong)
        assert {issue.path for issue in refused.issues} == {
            ("args", "a"), ("args", "b"), ("priority",), ("queue",), ("delaySeconds",),
        }  # fmt: skip

    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("\0"),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
            max_leaves=10,
        )
    )
    def test_any_value_is_stored_exactly_or_refused(self, trigger: Trigger, value: Any) -> None:
        try:
            run = trigger(args={"value": value}).run
        except InvalidInput:
            return
        assert _numbers_as_text(run.args["value"]) == _numbers_as_text(value)


def _numbers_as_text(value: Any) -> Any:
    """Whole and broken numbers are one kind in the database: 1.0 comes back as 1, or as 1.0."""
    match value:
        case bool() | None | str():
            return value
        case float() | int():
            return repr(float(value))
        case list():
            return [_numbers_as_text(part) for part in value]
        case _:
            return {name: _numbers_as_text(part) for name, part in value.items()}


class TestNames:
    """A name means a task of a family that is on."""

    def test_a_bare_name_is_enough(self, trigger: Trigger) -> None:
        assert trigger(task_name="echo").run.task == "diagnostics.echo"

    def test_a_task_of_a_family_that_is_off_is_unknown(
        self, installation: Installation, new_tenant: Callable[..., Principal]
    ) -> None:
        principal = new_tenant("sales")
        refused = _refused(installation, principal, UnknownTask, ECHO)
        assert "diagnostics is not enabled" in str(refused)
        assert refused.candidates == ()

    @pytest.mark.parametrize(
        "name", ["", "x", "diagnostics.", ".echo", "diagnostics.ech", "Diagnostics.Echo", "a\0b", "💥"]
    )
    def test_any_other_name_is_unknown(self, installation: Installation, tenant: Principal, name: str) -> None:
        _refused(installation, tenant, UnknownTask, replace(ECHO, task_name=name))

    def test_the_nearest_names_are_told(self, installation: Installation, tenant: Principal) -> None:
        refused = _refused(installation, tenant, UnknownTask, replace(ECHO, task_name="diagnostics.ech"))
        assert "diagnostics.echo" in refused.candidates

    def test_a_key_narrowed_to_a_task_triggers_no_other(self, installation: Installation, tenant: Principal) -> None:
        narrow = replace(tenant, scopes=frozenset({"runs:write"}), task_names=frozenset({"diagnostics.sleep"}))
        _refused(installation, narrow, Forbidden, ECHO)

    @pytest.mark.parametrize("scope", ["runs:read", "sales:write", "diagnostics:read"])
    def test_without_the_scope_nothing_is_triggered(
        self, installation: Installation, tenant: Principal, scope: str
    ) -> None:
        reader = replace(tenant, scopes=frozenset({scope}))
        refused = _refused(installation, reader, Forbidden, ECHO)
        assert refused.required_scope == "diagnostics:write"


class TestTenants:
    """Nothing starts for a tenant that is suspended or is none."""

    def test_a_suspended_tenant_triggers_nothing(self, installation: Installation, tenant: Principal) -> None:
        installation.rows("UPDATE tenants SET suspended_at = now() WHERE id = %s", str(tenant.tenant))
        _refused(installation, tenant, TenantSuspended, ECHO)

    def test_a_tenant_that_is_none_triggers_nothing(self, installation: Installation) -> None:
        nobody = Principal(ids.new(), ActorKind.API_KEY, "key_none", frozenset({"*"}))
        _refused(installation, nobody, TenantSuspended, ECHO)

    def test_a_paused_tenants_run_is_accepted_and_waits(
        self, installation: Installation, tenant: Principal, trigger: Trigger
    ) -> None:
        installation.write(tenant, switches.pause)
        assert trigger().run.state == "QUEUED"
