"""Who may ask for what: each root field refuses who lacks its scope, before it asks the database anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from graphql import (
    GraphQLArgument,
    GraphQLInputObjectType,
    get_named_type,
    is_leaf_type,
    is_non_null_type,
    is_required_argument,
)
from strawberry.types import ExecutionResult

from schema import permissions
from schema.context import Context
from tenants.context import ActorKind
from tests.support import fields
from tests.support.fields import LATER, ROOT, SCHEMA


def _operation(name: str) -> str:
    """The shortest operation that asks for a root field."""
    parent, _, field_name = name.partition(".")
    field = SCHEMA._schema.type_map[parent].fields[field_name]  # type: ignore[attr-defined]
    arguments = [f"{key}: {_literal(given)}" for key, given in field.args.items() if is_required_argument(given)]
    call = f"({', '.join(arguments)})" if arguments else ""
    selection = "" if is_leaf_type(get_named_type(field.type)) else " { __typename }"
    return f"{parent.lower()} {{ {field_name}{call}{selection} }}"


def _literal(given: GraphQLArgument) -> str:
    known = get_named_type(given.type)
    if isinstance(known, GraphQLInputObjectType):
        if known.is_one_of:
            return "{everySeconds: 60}"
        required = {key: inner for key, inner in known.fields.items() if is_non_null_type(inner.type)}
        inside = ", ".join(f"{key}: {_literal(inner)}" for key, inner in required.items())
        return f"{{{inside}}}" if not str(given.type).startswith("[") else f"[{{{inside}}}]"
    values = {"Int": "1", "Float": "1", "DateTime": '"2026-11-20T09:30:00Z"', "Date": '"2026-11-20"', "Boolean": "true"}
    text = values.get(known.name) or (next(iter(known.values)) if hasattr(known, "values") else '"x"')
    return f"[{text}]" if "[" in str(given.type) else text


async def _answer(name: str, context: Context) -> dict[str, object]:
    """The code of the error, or of the problem."""
    query, result = _operation(name), None
    if name.startswith("Subscription."):
        async for each in await SCHEMA.stream(query, context_value=context):
            result = each
    else:
        if name.startswith("Mutation."):
            query = query.replace("{ __typename }", "{ success problem { code } }")
        result = await SCHEMA.execute(query, context_value=context)
    assert isinstance(result, ExecutionResult)
    if result.errors:
        return {"error": (result.errors[0].extensions or {}).get("code")}
    [payload] = (result.data or {}).values()
    return {"problem": payload["problem"]["code"]}


@pytest.mark.parametrize("name", ROOT)
async def test_a_stranger_is_unauthenticated(name: str, new_context: Callable[..., Context]) -> None:
    assert await _answer(name, new_context(stranger=True)) == {"error": "UNAUTHENTICATED"}


@pytest.mark.parametrize("name", [name for name in ROOT if fields.rule(name).scope])
async def test_who_lacks_the_scope_is_forbidden(name: str, new_context: Callable[..., Context]) -> None:
    every_other = {
        other.scope for other in vars(permissions).values() if isinstance(other, permissions.Rule) and other.scope
    } - {"*", fields.rule(name).scope}
    answer = await _answer(name, new_context(*every_other))
    assert answer in ({"error": "FORBIDDEN"}, {"problem": "FORBIDDEN"})
    if name.startswith("Mutation.") and name not in LATER:
        assert answer == {"problem": "FORBIDDEN"}


@pytest.mark.parametrize("name", [name for name in ROOT if fields.rule(name).changes])
async def test_a_suspended_tenant_changes_nothing(name: str, new_context: Callable[..., Context]) -> None:
    answer = await _answer(name, new_context("*", suspended=True, kind=ActorKind.OPERATOR))
    assert answer in ({"error": "TENANT_SUSPENDED"}, {"problem": "TENANT_SUSPENDED"})
