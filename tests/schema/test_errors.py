"""Expected failures have a code; all others are masked, in streams too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import strawberry
from structlog.testing import capture_logs

from schema.context import Context
from schema.errors import MASKED, Masked
from schema.root import Schema
from tenants import errors

SECRET = "postgresql://login:hunter2@db/tenants"


@strawberry.type
class _Query:
    @strawberry.field
    def broken(self) -> str:
        raise RuntimeError(SECRET)

    @strawberry.field
    async def broken_later(self) -> str:
        raise RuntimeError(SECRET)

    @strawberry.field
    def misconfigured(self) -> str:
        raise errors.Misconfigured(SECRET)

    @strawberry.field
    def refused(self) -> str:
        raise errors.Forbidden(required_scope="runs:read")


@strawberry.type
class _Subscription:
    @strawberry.subscription
    async def breaks(self) -> AsyncIterator[int]:
        yield 1
        raise RuntimeError(SECRET)

    @strawberry.subscription
    async def never_begins(self) -> AsyncIterator[int]:
        if SECRET:
            raise RuntimeError(SECRET)
        yield 1

    @strawberry.subscription
    async def ends(self) -> AsyncIterator[int]:
        yield 1
        raise errors.Unauthenticated(reason="expired")


SCHEMA = Schema(query=_Query, subscription=_Subscription, extensions=[Masked])


@pytest.mark.parametrize("field", ["broken", "brokenLater", "misconfigured"])
async def test_an_unexpected_failure_is_masked_and_logged(field: str, new_context: Callable[..., Context]) -> None:
    with capture_logs() as logs:
        result = await SCHEMA.execute(f"{{ {field} }}", context_value=new_context())
    assert result.data is None
    [error] = result.errors or []
    assert error.message == MASKED
    assert error.extensions == {"code": "INTERNAL_SERVER_ERROR", "requestId": "request-of-a-test"}
    assert SECRET not in str(error.formatted)
    [line] = logs
    assert (line["event"], line["request_id"], line["path"]) == ("request_failed", "request-of-a-test", [field])


@pytest.mark.parametrize(("field", "before"), [("breaks", 1), ("neverBegins", 0)])
async def test_a_stream_that_fails_is_masked_too(field: str, before: int, new_context: Callable[..., Context]) -> None:
    with capture_logs() as logs:
        stream = await SCHEMA.stream(f"subscription {{ {field} }}", context_value=new_context())
        results: list[Any] = [result async for result in stream]
    assert [result.data for result in results[:-1]] == [{field: 1}] * before
    [error] = results[-1].errors
    assert (error.message, error.extensions["code"]) == (MASKED, "INTERNAL_SERVER_ERROR")
    assert SECRET not in str(error.formatted)
    assert [line["event"] for line in logs] == ["request_failed"]


async def test_an_expected_failure_is_told_and_not_logged(new_context: Callable[..., Context]) -> None:
    with capture_logs() as logs:
        result = await SCHEMA.execute("{ refused }", context_value=new_context())
        stream = await SCHEMA.stream("subscription { ends }", context_value=new_context())
        streamed: list[Any] = [result async for result in stream]
    [error] = result.errors or []
    assert error.extensions == {"code": "FORBIDDEN", "requiredScope": "runs:read"}
    [ended] = streamed[-1].errors
    assert ended.extensions == {"code": "UNAUTHENTICATED", "reason": "expired"}
    assert logs == []
