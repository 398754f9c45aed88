"""The scalars of the contract: moments, JSON and cursors, each strict about what it takes."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, NewType

import strawberry
from graphql import GraphQLError, ValueNode, value_from_ast_untyped
from strawberry.types.scalar import ScalarDefinition

JSON = NewType("JSON", object)
Cursor = NewType("Cursor", str)

DEEPEST_JSON = 100
_LARGEST_INTEGER = 2**64 - 1
_SMALLEST_INTEGER = -(2**63)


def parse_moment(value: object) -> datetime:
    """An RFC 3339 moment, which names its offset from UTC, as UTC."""
    if not isinstance(value, str) or len(value) > 40:
        raise GraphQLError("DateTime must be text such as 2026-11-20T09:30:00Z.")
    try:
        moment = datetime.fromisoformat(value)
        if "T" not in value.upper() or moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise GraphQLError("DateTime must be text such as 2026-11-20T09:30:00Z.") from None


def show_moment(value: datetime) -> str:
    """The moment in UTC, as RFC 3339 writes it."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_json(value: object) -> object:
    """Any JSON value of at most 100 levels whose numbers are finite."""
    _check(value, 0)
    return value


def _parse_json_literal(node: ValueNode, variables: dict[str, Any] | None = None) -> object:
    return parse_json(value_from_ast_untyped(node, variables))


def _parse_cursor(value: object) -> str:
    if not isinstance(value, str):
        raise GraphQLError("Cursor must be text.")
    return value


def _check(value: object, depth: int) -> None:
    if depth > DEEPEST_JSON:
        raise GraphQLError(f"JSON must not be deeper than {DEEPEST_JSON} levels.")
    if isinstance(value, dict):
        for inner in value.values():
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise GraphQLError("JSON numbers must be finite.")
    elif isinstance(value, int) and not _SMALLEST_INTEGER <= value <= _LARGEST_INTEGER:
        raise GraphQLError("JSON integers must fit into 64 bits.")


SCALARS: dict[object, ScalarDefinition] = {
    datetime: strawberry.scalar(
        name="DateTime", description="RFC 3339, UTC on output.", serialize=show_moment, parse_value=parse_moment
    ),
    JSON: strawberry.scalar(
        name="JSON",
        description="Any JSON value.",
        serialize=lambda value: value,
        parse_value=parse_json,
        parse_literal=_parse_json_literal,
    ),
    Cursor: strawberry.scalar(
        name="Cursor",
        description="Opaque; of our own making, survives restarts of everything.",
        serialize=str,
        parse_value=_parse_cursor,
    ),
}
