"""A query that has been seen is neither parsed nor validated again, with every production extension on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import strawberry.schema.schema as execution
from graphql import parse

from schema import costs, guards, root
from schema.context import Context

SCHEMA = root.build()
DOCUMENTS: guards.Documents = cast("Any", SCHEMA.extensions[1]())._documents


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the parser and the validator have worked."""
    calls = {"parse": 0, "validate": 0}

    def counting(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return work(*args, **kwargs)

        return count

    for module, name in (
        (guards, "parse"),
        (execution, "parse"),
        (guards, "validate"),
        (execution, "validate"),
    ):
        monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    return calls


async def test_the_cache_hits(counted: dict[str, int], new_context: Callable[..., Context]) -> None:
    query = "query TheCacheHits($id: ID!) { node(id: $id) { id } }"
    for number in range(20):
        result = await SCHEMA.execute(query, variable_values={"id": f"nothing_{number}"}, context_value=new_context())
        assert result.errors is None
    assert counted == {"parse": 1, "validate": 1}


async def test_strangers_find_what_is_kept_and_leave_nothing(
    counted: dict[str, int], new_context: Callable[..., Context]
) -> None:
    query = "query StrangersLeaveNothing { __typename }"
    before = DOCUMENTS.size
    for number in range(1, 4):
        assert (await SCHEMA.execute(query, context_value=new_context(stranger=True))).errors is None
        assert counted == {"parse": number, "validate": number}
    assert DOCUMENTS.size == before
    assert (await SCHEMA.execute(query, context_value=new_context())).errors is None
    for _ in range(3):
        assert (await SCHEMA.execute(query, context_value=new_context(stranger=True))).errors is None
    assert counted == {"parse": 4, "validate": 4}


async def test_what_is_wrong_is_not_kept(new_context: Callable[..., Context]) -> None:
    before = DOCUMENTS.size
    for query in ("{ nothing }", "{", "{ " + "nothing " * 500 + "}"):
        result = await SCHEMA.execute(query, context_value=new_context("*"))
        assert result.errors
        assert DOCUMENTS.find(query) is None
    assert DOCUMENTS.size == before


def test_the_cache_is_bounded_by_what_it_takes() -> None:
    documents = guards.Documents((), hints=False, room=100_000)
    small = [f"{{ a{number}: __typename }}" for number in range(200)]
    large = "{ __typename } #" + "x" * 40_000
    for text in small:
        documents.keep(text, guards.Document(parse(text), 1, {}))
        assert documents.size <= 100_000
    kept = [text for text in small if documents.find(text)]
    assert kept == small[-len(kept) :]
    assert 10 < len(kept) < 100
    documents.keep(large, guards.Document(parse(large), 1, {}))
    assert documents.find(large)
    assert documents.size <= 100_000
    assert 0 < sum(documents.find(text) is not None for text in small) < len(kept)


def test_what_is_kept_fills_no_more_than_a_few_tens_of_megabytes() -> None:
    largest = "{ " + "__typename " * (costs.TOKENS - 2) + "}"
    assert guards._size(largest, guards.Document(parse(largest), 1, {})) * 20 < guards.KEPT_BYTES <= 2**25
