"""Tasks are found by scanning, and a name means one of them or is answered with the nearest ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks import registry
from tasks.registry import Family, Input, RetryPolicy, TaskDefinition
from tenants.errors import AmbiguousTask, UnknownTask

FAMILIES = ("books", "mail", "shop")
WORDS = ("send", "send_letters", "count", "count_stock", "refresh")


def _family(name: str, words: tuple[str, ...]) -> Family:
    return Family(name, name, tuple(TaskDefinition(f"{name}.{word}", Input, "…", name) for word in words))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Family]]:
    """Three families; `send` is in two of them."""
    found = {
        "books": _family("books", ("send", "count")),
        "mail": _family("mail", ("send", "send_letters")),
        "shop": _family("shop", ("refresh", "count_stock")),
    }
    tasks = {task.name: task for family in found.values() for task in family.tasks}
    monkeypatch.setattr(registry, "families", lambda: found)
    monkeypatch.setattr(registry, "definitions", lambda: tasks)
    registry._bare_names.cache_clear()
    yield found
    registry._bare_names.cache_clear()


@pytest.mark.parametrize(("queue", "operator_only"), [(registry.OPERATOR_QUEUE, False), ("books", True)])
def test_operators_tasks_alone_go_to_the_operators_queue(queue: str, operator_only: bool) -> None:
    with pytest.raises(ValueError, match="is for operators' tasks"):
        TaskDefinition("books.send", Input, "…", queue, operator_only=operator_only)


def test_a_full_name_means_its_task(made_up: dict[str, Family]) -> None:
    assert registry.resolve("books.send", FAMILIES).name == "books.send"


def test_a_bare_name_means_the_only_one_enabled(made_up: dict[str, Family]) -> None:
    assert registry.resolve("send", ["mail", "shop"]).name == "mail.send"
    assert registry.resolve("refresh", FAMILIES).name == "shop.refresh"


def test_a_bare_name_of_two_families_is_ambiguous(made_up: dict[str, Family]) -> None:
    with pytest.raises(AmbiguousTask) as refused:
        registry.resolve("send", FAMILIES)
    assert refused.value.candidates == ("books.send", "mail.send")
    assert str(refused.value) == "Several families have a task 'send': write books.send or mail.send."


def test_a_task_of_a_family_that_is_off_is_unknown_and_not_told(made_up: dict[str, Family]) -> None:
    with pytest.raises(UnknownTask) as refused:
        registry.resolve("books.send", ["shop"])
    assert all(name.startswith("shop.") for name in refused.value.candidates)


def test_a_slip_is_answered_with_the_nearest_names(made_up: dict[str, Family]) -> None:
    with pytest.raises(UnknownTask) as refused:
        registry.resolve("refersh", FAMILIES)
    assert refused.value.candidates == ("shop.refresh",)
    assert "Did you mean shop.refresh?" in str(refused.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.one_of(
        st.text(max_size=40),
        st.sampled_from(WORDS),
        st.builds("{}.{}".format, st.sampled_from(FAMILIES), st.sampled_from(WORDS)),
    ),
    enabled=st.sets(st.sampled_from((*FAMILIES, "elsewhere"))),
)
def test_a_name_means_one_enabled_task_or_none(made_up: dict[str, Family], name: str, enabled: set[str]) -> None:
    everything = registry.definitions()
    full = {task for task in everything if task.partition(".")[0] in enabled}
    bare = {task for task in full if task.partition(".")[2] == name}
    try:
        found = registry.resolve(name, enabled)
    except AmbiguousTask as refused:
        told = set(refused.candidates)
        assert name not in full
        assert told == bare
        return
    except UnknownTask as refused:
        told = set(refused.candidates)
        assert name not in full | bare
        assert told <= full
        return
    assert found.name in ({name} if name in full else bare)


def test_every_definition_is_a_families_own_and_can_be_reached() -> None:
    assert {"diagnostics", "sales"} <= set(registry.families())
    for family in registry.families().values():
        for task in family.tasks:
            assert task.family == family.name
            assert registry.resolve(task.name, [family.name]) is task
            assert registry.definition(task.name) is task
    assert len(registry.definitions()) == sum(len(family.tasks) for family in registry.families().values())


def test_every_definition_can_be_run() -> None:
    bodies = registry.bodies()
    for name, task in registry.definitions().items():
        assert callable(bodies[name])
        assert 0 <= task.priority <= 9, name
        assert 0 < task.soft_seconds < task.hard_seconds, name
        assert task.retry.attempts >= 1, name
        assert task.queue in registry.queues(), name
        assert task.description.strip(), name


def test_an_input_refuses_names_it_does_not_know() -> None:
    for name, task in registry.definitions().items():
        with pytest.raises(ValidationError, match="__proto__"):
            task.input.model_validate({"__proto__": 1})
        assert task.input.model_config["frozen"], name


def test_a_retry_policy_waits_longer_each_time() -> None:
    policy = RetryPolicy()
    assert (policy.base_seconds, policy.factor, policy.cap_seconds, policy.attempts) == (2.0, 2.0, 600.0, 4)
