"""A query that asks too much is refused before anything is executed, and before what would cost much is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from graphql import SelectionSetNode, ValidationRule, parse, validate

from schema import costs, guards, root
from schema.context import Context

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
    "aliases": "{ " + " ".join(f"a{n}: __typename" for n in range(guards.ALIASES + 1)) + " }",
    "aliases in an inline fragment": "{ ... on Query { " + " ".join(f"a{n}: __typename" for n in range(31)) + " } }",
    "directives": "{ " + " ".join("__typename @skip(if: false)" for _ in range(guards.DIRECTIVES + 1)) + " }",
    "fields": "{ " + " ".join("viewer { tenant { id name slug } }" for _ in range(guards.FIELDS // 5 + 1)) + " }",
    "fields of one name": "{ " + "__typename " * (guards.REPEATS + 1) + "}",
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

    for name in ("depth", "fields", "fields of one name", "fields of one name in a fragment", "doubling fragments"):
        assert len(validate(SCHEMA._schema, parse(REFUSED[name]), [Next, guards.Shape])) == 1, name
    assert looked_at == []


@pytest.mark.parametrize(
    "query",
    ["{ " + "__typename " * guards.TOKENS + "}", "{" * 3000, "query { ", "# only a comment", "\ufeff\x01"],
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


async def test_a_query_at_the_limits_passes(new_context: Callable[..., Context]) -> None:
    deep = "{ node(id: 1) { " + "... on Run { origin { " * 8 + "id" + " } }" * 8 + " } }"
    wide = "{ " + " ".join(f"a{n}: __typename" for n in range(guards.ALIASES)) + " }"
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
