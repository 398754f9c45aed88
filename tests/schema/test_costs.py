"""What an operation costs: by hand for some, and never less than it answers for any that can be made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from graphql import (
    GraphQLResolveInfo,
    GraphQLSchema,
    build_schema,
    get_named_type,
    get_nullable_type,
    graphql_sync,
    is_enum_type,
    is_leaf_type,
    is_list_type,
    parse,
    print_schema,
    validate,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis_graphql import from_schema, nodes
from strawberry.types import ExecutionResult

from schema import costs, guards, root, shapes
from schema.context import Context
from tenants import pages
from tenants.buckets import Bucket
from tests.support.tiers import Tier

SCHEMA = root.build()
TRIGGER = 'mutation { triggerBackgroundTask(taskName: "echo") { success taskId message } }'
RUNS = "query($n: Int = 7) { runs(first: $n) { nodes { id state } } }"
BULK = "mutation($i: [TriggerInput!]!) { triggerBackgroundTasks(inputs: $i) { success runs { id } } }"


def _cost(query: str, name: str | None = None) -> costs.Cost:
    assert validate(SCHEMA._schema, parse(query)) == []
    return costs.of(SCHEMA._schema, parse(query))[name]


@pytest.mark.parametrize(
    ("query", "variables", "points"),
    [
        ("{ __typename }", {}, 1),
        ("{ viewer { kind email } }", {}, 2),
        (TRIGGER, {}, 12),
        ("{ runs(first: 100) { nodes { id state } } }", {}, 121),
        ("{ runs(first: 100) { edges { cursor node { id state } } } }", {}, 231),
        ("{ runs(first: 10) { totalCount nodes { id } } }", {}, 32),
        ("{ runs(last: 10) { nodes { id } } }", {}, 12),
        ("{ runs { nodes { id } } }", {}, 56),
        ("{ runs(first: -5) { nodes { id } } }", {}, 1),
        ("{ runs(first: 1000000) { nodes { id } } }", {}, 111),
        (RUNS, {}, 10),
        (RUNS, {"n": 50}, 61),
        (RUNS, {"n": 50.0}, 61),
        (RUNS, {"n": 1e9}, 121),
        (RUNS, {"n": None}, 61),
        (RUNS, {"n": "many"}, 61),
        ("{ runs(first: null) { nodes { id state } } }", {}, 61),
        (BULK, {"i": [{"taskName": "echo"}] * 1000}, 2112),
        ("{ runs(first: 10) { nodes { events(first: 10) { nodes { at } } } } }", {}, 131),
        ("{ run(id: 1) { ...a ...a } } fragment a on Run { origin { id } origin { id state } }", {}, 3),
        ("{ a: viewer { kind } b: viewer { kind } }", {}, 3),
        ("{ __schema { types { fields { type { name } } } } }", {}, 200),
        ('subscription { taskUpdates(taskId: "run_1") { kind } }', {}, 12),
    ],
)
def test_what_operations_cost(query: str, variables: dict[str, Any], points: int) -> None:
    assert _cost(query).asked(variables) == points


def test_each_operation_of_a_document_has_its_cost() -> None:
    document = "query a { viewer { kind } } query b { runs(first: 100) { nodes { id } } }"
    assert (_cost(document, "a").asked(None), _cost(document, "b").asked(None)) == (2, 111)


def test_what_is_not_found_is_not_charged() -> None:
    cost = _cost("{ runs(first: 100) { nodes { id origin { id } } } viewer { kind } }")
    nodes_found = [{"id": "1", "origin": None}, {"id": "2", "origin": {"id": "1"}}]
    assert cost.found({"runs": {"nodes": nodes_found}, "viewer": None}, None) == 5
    assert cost.found({"runs": None, "viewer": None}, None) == 1


def _simulated() -> GraphQLSchema:
    """The schema with resolvers that give as much as the real ones ever do."""
    return build_schema(print_schema(SCHEMA._schema))


SIMULATED = _simulated()
_TEXT = st.sampled_from(['""', '"x"', '"2026-11-20T09:30:00Z"']).map(lambda text: nodes.String(text[1:-1]))
_SCALARS = {
    name: _TEXT for name in SCHEMA._schema.type_map if name in {"JSON", "DateTime", "Cursor", "Date", "Decimal"}
}


class _Answer:
    """Resolves every field at worst, and counts the objects it gives."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.objects = 0
        self._draw = draw

    def resolve(self, source: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
        page = source if type(source) is int else None  # Not True, which any other object is.
        kind = get_nullable_type(info.return_type)
        named = get_named_type(kind)
        if is_leaf_type(named):
            value: Any = next(iter(named.values)) if is_enum_type(named) else 1
            return [value] if is_list_type(kind) else value
        pages_asked = [arguments[name] for name in ("first", "last", "count") if arguments.get(name) is not None]
        if any(not 1 <= asked <= pages.MOST for asked in pages_asked):
            return None
        given = arguments.get("inputs", arguments.get("counts"))
        size = max(pages_asked, default=None if given is None else len(given))
        if size is None and {"first", "last", "count"} & set(info.parent_type.fields[info.field_name].args):
            size = pages.DEFAULT
        if not is_list_type(kind):
            self.objects += 1
            return True if size is None else size
        usual = costs._SIZES.get(f"{info.parent_type.name}.{info.field_name}", costs._LIST)
        most: int = next((number for number in (size, page) if number is not None), usual)
        self.objects += most
        return [True] * most

    def type_of(self, value: Any, info: GraphQLResolveInfo[Any], kind: Any) -> str:
        names = sorted(one.name for one in info.schema.get_possible_types(kind))
        name: str = self._draw(st.sampled_from(names))
        return name


def test_no_query_answers_more_than_it_was_asked_for(tier: Tier) -> None:
    @settings(
        max_examples=tier(150, 1000),
        derandomize=True,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.generate],
        database=None,
    )
    @given(from_schema(SIMULATED, custom_scalars=_SCALARS), st.data())
    def check(query: str, data: st.DataObject) -> None:
        document = parse(query)
        if validate(SIMULATED, document, [shapes.Shape]):
            return
        asked = {name: cost.asked(None) for name, cost in costs.of(SCHEMA._schema, document).items()}
        if max(asked.values()) > costs.MOST:
            return
        answer = _Answer(data.draw)
        result = graphql_sync(SIMULATED, query, field_resolver=answer.resolve, type_resolver=answer.type_of)
        assert answer.objects <= asked[None], query
        if result.data is not None:
            assert costs.of(SCHEMA._schema, document)[None].found(result.data, None) <= asked[None]
        seen.append(answer.objects)

    seen: list[int] = []
    check()
    assert len(seen) > tier(30, 250)
    assert max(seen) > 20


async def test_a_caller_is_told_what_it_cost_and_gets_back_what_was_not_needed(
    new_context: Callable[..., Context],
) -> None:
    query = "{ viewer { kind } node(id: 1) { id } }"
    await SCHEMA.execute(query, context_value=new_context("*"))  # It costs more when it is new.
    budget = Bucket(1000, 0.001)
    context = new_context("*", budget=budget)
    result = await SCHEMA.execute(query, context_value=context)
    assert result.extensions == {
        "cost": {
            "requested": 3,
            "actual": 2,
            "throttleStatus": {"maximumAvailable": 1000, "currentlyAvailable": 998, "restoreRate": 0.001},
        }
    }
    assert int(budget.room()) == 998


async def test_a_caller_who_has_too_little_left_is_refused_and_pays_nothing(
    new_context: Callable[..., Context],
) -> None:
    query = "{ runs { nodes { id } } }"
    await SCHEMA.execute(query, context_value=new_context("*"))
    budget = Bucket(100, 0.01, level=50)
    result = await SCHEMA.execute(query, context_value=new_context("*", budget=budget))
    assert result.data is None
    [error] = result.errors or []
    told = error.extensions or {}
    assert told["code"] == "RATE_LIMITED"
    assert 500 < told["retryAfterSeconds"] <= 600
    assert (result.extensions or {})["cost"]["requested"] == 56
    assert (result.extensions or {})["cost"]["actual"] == 0
    assert budget.room() >= 50


async def test_whoever_has_nothing_left_is_not_even_read(
    new_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "parse", None)
    context = new_context("*", budget=Bucket(100, 1, level=120))
    for query in ("{ viewer { kind } }", "{", "mutation a { x }"):
        result = await SCHEMA.execute(query, context_value=context, operation_name="nobody")
        assert [(error.extensions or {})["code"] for error in result.errors or []] == ["RATE_LIMITED"]
    async for event in await SCHEMA.stream("subscription { runUpdates { kind } }", context_value=context):
        assert isinstance(event, ExecutionResult)
        assert [(error.extensions or {})["code"] for error in event.errors or []] == ["RATE_LIMITED"]


async def test_reading_is_paid_for_once(new_context: Callable[..., Context]) -> None:
    for actual in (7, 1):  # Five tokens on fewer than fifty characters, then known.
        context = new_context("*")
        result = await SCHEMA.execute("{ paid: __typename }", context_value=context)
        assert result.errors is None
        assert (result.extensions or {})["cost"]["actual"] == actual


@pytest.mark.parametrize(
    ("query", "points"),
    [
        ("{", costs.REFUSAL + 2),
        ("{ nope }", costs.REFUSAL + 9),
        ("{ " + " ".join(f"a{n}: __typename" for n in range(31)) + " }", costs.REFUSAL + 124),
        ("query a { __typename } query b { __typename }", costs.REFUSAL + 11),
        ("{ runs(first: 100) { nodes { events(first: 100) { edges { node { at } } } } } }", costs.REFUSAL + 27),
    ],
    ids=["syntax", "unknown field", "aliases", "two operations", "too dear"],
)
async def test_what_is_refused_is_charged_each_time(
    query: str, points: int, new_context: Callable[..., Context]
) -> None:
    for _ in range(3):
        budget = Bucket(1000, 0.001)
        result = await SCHEMA.execute(query, context_value=new_context(stranger=True, budget=budget))
        assert result.data is None
        assert round(budget.level) >= points
        assert (result.extensions or {})["cost"]["actual"] == round(budget.level)


async def test_nothing_is_given_back_of_what_went_wrong(new_context: Callable[..., Context]) -> None:
    query = "{ viewer { kind } run(id: 1) { id } runs(first: 100) { nodes { id } } }"
    await SCHEMA.execute(query, context_value=new_context("*"))
    budget = Bucket(1000, 0.001)
    result = await SCHEMA.execute(query, context_value=new_context("*", budget=budget))
    assert result.errors  # There is no database.
    cost = (result.extensions or {})["cost"]
    assert cost["requested"] == cost["actual"] == round(budget.level) > 100
