"""A query that has been seen is neither parsed nor validated again, with every production extension on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import strawberry.schema.schema as execution

from schema import guards, root
from schema.context import Context

SCHEMA = root.build()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the parser and the validator have worked, from an empty cache on."""
    calls = {"parse": 0, "validate": 0}

    def counting(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return work(*args, **kwargs)

        return count

    for module, name in (
        (guards, "parse"),
        (execution, "parse"),
        (guards, "validate_document"),
        (execution, "validate_document"),
    ):
        monkeypatch.setattr(module, name, counting(name.partition("_")[0], getattr(module, name)))
    guards._read.cache_clear()
    return calls


async def test_the_cache_hits(counted: dict[str, int], new_context: Callable[..., Context]) -> None:
    query = "query($id: ID!) { node(id: $id) { id } }"
    for number in range(20):
        result = await SCHEMA.execute(query, variable_values={"id": f"nothing_{number}"}, context_value=new_context())
        assert result.errors is None
    assert counted == {"parse": 1, "validate": 1}


async def test_what_is_invalid_is_not_validated_again(
    counted: dict[str, int], new_context: Callable[..., Context]
) -> None:
    for _ in range(5):
        result = await SCHEMA.execute("{ nothing }", context_value=new_context())
        assert [(error.extensions or {})["code"] for error in result.errors or []] == ["GRAPHQL_VALIDATION_FAILED"]
    assert counted == {"parse": 1, "validate": 1}


async def test_the_cache_is_bounded(counted: dict[str, int], new_context: Callable[..., Context]) -> None:
    for number in range(guards.CACHED + 10):
        await SCHEMA.execute(f"{{ a{number}: __typename }}", context_value=new_context())
    assert guards._read.cache_info().currsize == guards.CACHED
