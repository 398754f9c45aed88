"""A query that asks too much is refused before anything is executed, and before what would cost much is asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import pytest
from graphql import SelectionSetNode, ValidationRule, parse, validate

from schema import costs, guards, root, shapes
from schema.context import Context
from tenants.buckets import Bucket

SCHEMA = root.build()
NESTED = "run(id: 1) { " + "origin { " * 12 + "id" + " }" * 12 + " }"


async def _codes(query: str, context: Context, variables: dict[str, Any] | None = None) -> list[str]:
    result = await SCHEMA.execute(query, variable_values=variables, context_value=context)
    assert result.data is None
    return [(error.extensions or {})["code"] for error in result.errors or []]


def _fragments(levels: int) -> str:
    """Fragments that spread the next one twice: 2 to the power of the levels fields, in a few lines."""
    parts = [f"fragment f{n} on Run {{ ...f{n + 1} x{n}: origin {{ ...f{n + 1} }} }}" for n in range(levels)]
    return "{ run(id: 1) { ...f0 } } " + " ".join(parts) + f" fragment f{levels} on Run {{ id }}"


REFUSED = {
    "depth": f"{{ {NESTED} }}",
    "depth in a fragment": "{ ...q } fragment q on Query { " + NESTED + " }",
    "aliases": "{ " + " ".join(f"a{n}: __typename" for n in range(shapes.ALIASES + 1)) + " }",
    "aliases in an inline fragment": "{ ... on Query { " + " ".join(f"a{n}: __typename" for n in range(31)) + " } }",
    "directives": "{ " + " ".join("__typename @skip(if: false)" for _ in range(shapes.DIRECTIVES + 1)) + " }",
    "fields": "{ " + " ".join("viewer { tenant { id name slug } }" for _ in range(shapes.FIELDS // 5 + 1)) + " }",
    "fields of several operations": " ".join(f"query q{n} {{ {'__typename ' * 60}}}" for n in range(17)),
    "fields of one name": "{ " + "__typename " * 78 + "}",
    "fields of one name, each in a place of its own": "{ " + "run(id: 1) { origin { id } } " * 46 + "}",
    "fields of one name by fragments": "{ "
    + " ".join(f"...f{n}" for n in range(78))
    + " } "
    + " ".join(f"fragment f{n} on Query {{ __typename }}" for n in range(78)),
    "fields of an input": "{ runs(filter: {"
    + " ".join(f"x{n}: 1" for n in range(shapes.INPUTS + 1))
    + "}) { nodes { id } } }",
    "fields of an input in a list": "mutation { triggerBackgroundTasks(inputs: [{args: {"
    + " ".join(f"x{n}: 1" for n in range(shapes.INPUTS + 1))
    + "}}]) { success } }",
    "fields of an input as a default": "query($f: RunFilter = {"
    + " ".join(f"x{n}: 1" for n in range(shapes.INPUTS + 1))
    + "}) { runs(filter: $f) { nodes { id } } }",
    "a circle of fields": "{ run(id: 1) { ...a } } fragment a on Run { x: origin { ...a } y: origin { ...a } }",
    "fields of one name in a fragment": "{ __typename } fragment f on Query { " + "__typename " * 900 + "}",
    "rows": "query($n: Int = 100) { "
    + "".join(f"a{n}: runs(first: $n) {{ nodes {{ ...e }} }} " for n in range(5))
    + "}"
    " fragment e on Run { events { nodes { at } } }",
    "rows hidden behind a negative page": "{ x: runs(first: -999999) { nodes { id } } "
    + "".join(f"a{n}: runs(first: 100) {{ nodes {{ ...e }} }} " for n in range(5))
    + "} fragment e on Run { events { nodes { at } } }",
    "doubling fragments": _fragments(12),
    "a circle of fragments": "{ run(id: 1) { ...a } } fragment a on Run { ...b } fragment b on Run { ...a }",
    "deep introspection": "{ __schema { types { " + "fields { type { " * 5 + "name" + " } }" * 5 + " } } }",
    "null in a literal": 'mutation { triggerBackgroundTask(taskName: "a\\u0000b") { success } }',
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_query_that_asks_too_much_is_refused(name: str, new_context: Callable[..., Context]) -> None:
    codes = await _codes(REFUSED[name], new_context("*"))
    assert set(codes) <= {"GRAPHQL_VALIDATION_FAILED", "BAD_USER_INPUT"}, codes
    assert codes


def test_what_asks_too_much_is_not_looked_at_any_further() -> None:
    looked_at = []

    class Next(ValidationRule):
        def enter_selection_set(self, node: SelectionSetNode, *_: Any) -> None:
            looked_at.append(node)

    for name in REFUSED:
        if not name.startswith(("depth", "fields", "doubling")):
            continue
        assert len(validate(SCHEMA._schema, parse(REFUSED[name]), [Next, shapes.Shape])) == 1, name
    assert looked_at == []


@pytest.mark.parametrize(
    "query",
    ["{ " + "__typename " * costs.TOKENS + "}", "{" * 3000, "query { ", "# only a comment", "\ufeff\x01"],
    ids=["tokens", "braces", "cut off", "comment", "control characters"],
)
async def test_what_is_no_query_is_a_parse_error(query: str, new_context: Callable[..., Context]) -> None:
    assert await _codes(query, new_context("*")) == ["GRAPHQL_PARSE_FAILED"]


@pytest.mark.parametrize(
    "variables",
    [{"t": "a\0b"}, {"t": "x", "a": {"key\0": 1}}, {"t": "x", "a": {"list": [["\0"]]}}],
    ids=["text", "key", "nested"],
)
async def test_the_null_character_is_refused_in_variables(
    variables: dict[str, Any], new_context: Callable[..., Context]
) -> None:
    query = "mutation($t: String!, $a: JSON) { triggerBackgroundTask(taskName: $t, args: $a) { success } }"
    assert await _codes(query, new_context("*"), variables) == ["BAD_USER_INPUT"]


async def test_what_looks_like_the_null_character_is_none(new_context: Callable[..., Context]) -> None:
    for text in ("\\u0000", "\\\\u0000", "a\\\\\\u00000"):
        context = new_context("*")
        result = await SCHEMA.execute(
            "query($i: ID!) { node(id: $i) { id } }", variable_values={"i": text}, context_value=context
        )
        assert (result.errors, result.data) == (None, {"node": None})


async def test_variables_are_only_so_deep(new_context: Callable[..., Context]) -> None:
    deep: list[Any] = []
    for _ in range(450):
        deep = [deep]
    query = 'mutation($a: JSON) { triggerBackgroundTask(taskName: "x", args: $a) { success } }'
    for variables in ({"a": deep}, {"a": deep[0], "undeclared": deep}):
        budget = Bucket(1000, 0.001)
        assert await _codes(query, new_context("*", budget=budget), variables) == ["BAD_USER_INPUT"]
        assert budget.level > costs.REFUSAL


MISTAKES = {
    "unknown fields of an input": "{ runs(filter: {"
    + " ".join(f"{'x' * 500}{n}: 1" for n in range(shapes.INPUTS))
    + "}) { nodes { id } } }",
    "unknown values": "{ runs(filter: {states: [" + " ".join(f"NONE{n}" for n in range(900)) + "]}) { nodes { id } } }",
    "unknown fields": "{ " + " ".join(f"nothing{n}" for n in range(900)) + " }",
    "one long name": "{ " + "x" * 50_000 + " }",
    "no query": "x" * 50_000,
}


@pytest.mark.parametrize("name", MISTAKES)
async def test_mistakes_are_told_in_few_words(name: str, new_context: Callable[..., Context]) -> None:
    result = await SCHEMA.execute(MISTAKES[name], context_value=new_context("*"))
    assert 1 <= len(result.errors or []) <= guards.ERRORS + 1
    assert max(len(error.message) for error in result.errors or []) <= 201


@pytest.mark.parametrize(
    "variables",
    [{"f": {f"x{n}": 1 for n in range(10_000)}}, {"f": {"states": ["NONE"] * 10_000}}, {"f": {"ids": [[1]] * 10_000}}],
    ids=["fields", "values", "lists"],
)
async def test_mistakes_in_variables_are_told_in_few_words(
    variables: dict[str, Any], new_context: Callable[..., Context]
) -> None:
    query = "query($f: RunFilter) { runs(filter: $f) { nodes { id } } }"
    result = await SCHEMA.execute(query, variable_values=variables, context_value=new_context("*"))
    assert {(error.extensions or {})["code"] for error in result.errors or []} == {"BAD_USER_INPUT"}
    assert 1 <= len(result.errors or []) <= guards.ERRORS + 1
    assert max(len(error.message) for error in result.errors or []) <= 201


PLAIN = "query($n: Int) { runs(first: $n) { nodes { id state taskName events { nodes { at state } } } totalCount } }"
DEAR = {
    **MISTAKES,
    **{name: query for name, query in REFUSED.items() if "null" not in name},
    "just few enough fields of one name": "{ " + "runs { nodes { origin { id } } } " * 37 + "}",
    "fields that no alias tells apart": "{ " + 'runs(first: 1, after: "x") { nodes { id } } ' * 120 + "}",
    "operations": " ".join(f"query q{n} {{ viewer {{ kind }} }}" for n in range(200)),
    "operations of one fragment": " ".join(f"query q{n} {{ ...f }}" for n in range(150))
    + " fragment f on Query { "
    + " ".join(f"a{n}: viewer {{ kind }}" for n in range(29))
    + " }",
}


def test_what_is_dear_to_read_costs_as_much_as_it_takes() -> None:
    """Nothing takes thirty times the processor's time for a point that a plain query takes."""
    documents: guards.Documents = cast("Any", SCHEMA.extensions[1]())._documents

    def seconds_a_point(text: str) -> float:
        started, points = time.thread_time(), costs.reading(text)
        with suppress(guards.Invalid):
            points = costs.reading(text, documents.read(SCHEMA._schema, text).tree.token_count)
        return (time.thread_time() - started) / points

    plain = min(seconds_a_point(PLAIN) for _ in range(5))
    dear = {name: min(seconds_a_point(text) for _ in range(3)) / plain for name, text in DEAR.items()}
    assert max(dear.values()) < 30, dear


async def test_a_query_at_the_limits_passes(new_context: Callable[..., Context]) -> None:
    deep = "{ node(id: 1) { " + "... on Run { origin { " * 8 + "id" + " } }" * 8 + " } }"
    wide = "{ " + " ".join(f"a{n}: __typename" for n in range(shapes.ALIASES)) + " }"
    events = "{ runs(first: 100) { nodes { events(first: 100) { nodes { at } } } } }"
    assert costs.of(SCHEMA._schema, parse(events))[None].asked(None) < costs.MOST
    for query in (wide, deep):
        result = await SCHEMA.execute(query, context_value=new_context())
        assert result.errors is None, result.errors


async def test_introspection_is_open_only_where_the_schema_says_so(new_context: Callable[..., Context]) -> None:
    query = "{ __schema { queryType { name } } }"
    assert (await SCHEMA.execute(query, context_value=new_context())).errors is None
    closed = await root.build(introspection=False).execute(query, context_value=new_context())
    assert closed.data is None
    near = await root.build(introspection=False).execute("{ viewr { kind } }", context_value=new_context())
    assert "Did you mean" not in str(near.errors)
