"""Scalars take what the contract says and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from graphql import GraphQLError
from hypothesis import given
from hypothesis import strategies as st

from schema import root, scalars
from schema.context import Context

MUTATION = 'mutation($a: JSON, $e: DateTime) { triggerBackgroundTask(taskName: "x", args: $a, eta: $e) { success } }'


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {"a": [float("-inf")]}, _deep(101), {"a": 2**64}, -(2**63) - 1],
    ids=["nan", "inf", "nested", "deep", "large", "small"],
)
async def test_json_that_cannot_be_kept_exactly_is_refused(value: Any, new_context: Callable[..., Context]) -> None:
    result = await root.build().execute(MUTATION, variable_values={"a": value}, context_value=new_context("*"))
    assert result.data is None
    assert [(error.extensions or {})["code"] for error in result.errors or []] == ["BAD_USER_INPUT"]


@pytest.mark.parametrize("literal", ["1e400", "{a: [" + "[" * 100 + "1" + "]" * 100 + "]}", "99999999999999999999999"])
async def test_json_literals_are_held_to_the_same(literal: str, new_context: Callable[..., Context]) -> None:
    query = f'mutation {{ triggerBackgroundTask(taskName: "x", args: {literal}) {{ success }} }}'
    result = await root.build().execute(query, context_value=new_context("*"))
    assert result.data is None
    assert {(error.extensions or {})["code"] for error in result.errors or []} == {"GRAPHQL_VALIDATION_FAILED"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)  # fmt: skip
def test_json_passes_unchanged(value: Any) -> None:
    assert scalars.parse_json(value) == value


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-20T09:30:00Z", datetime(2026, 11, 20, 9, 30, tzinfo=UTC)),
        ("2026-11-20T09:30:00.123456+02:00", datetime(2026, 11, 20, 7, 30, 0, 123456, tzinfo=UTC)),
        ("2026-11-20t09:30:00-05:30", datetime(2026, 11, 20, 15, 0, tzinfo=UTC)),
    ],
)
def test_a_moment_is_read_in_any_offset(text: str, moment: datetime) -> None:
    assert scalars.parse_moment(text) == moment


@pytest.mark.parametrize(
    "text",
    ["2026-11-20", "2026-11-20T09:30:00", "now", "", 5, "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9" * 99],
)
def test_what_is_no_moment_is_refused(text: object) -> None:
    with pytest.raises(GraphQLError):
        scalars.parse_moment(text)


def test_a_moment_is_shown_in_utc() -> None:
    moment = datetime(2026, 11, 20, 9, 30, tzinfo=timezone(timedelta(hours=2)))
    assert scalars.show_moment(moment) == "2026-11-20T07:30:00Z"
