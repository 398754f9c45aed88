"""An expected failure reads the same wherever it is answered."""

from __future__ import annotations

import orjson
import pytest

from api import answers
from schema import errors as shown
from tenants import errors
from tenants.errors import Issue, TenantryError


@pytest.mark.parametrize(
    ("error", "status", "details"),
    [
        (errors.Forbidden(required_scope="runs:read"), 403, {"requiredScope": "runs:read"}),
        (errors.RateLimited(retry_after_seconds=2.31), 429, {"retryAfterSeconds": 2.4}),
        (errors.Unauthenticated(reason="expired"), 401, {"reason": "expired"}),
        (errors.Unavailable(retry_after_seconds=1), 503, {"retryAfterSeconds": 1}),
        (
            errors.InvalidInput(issues=[Issue(("a", "b"), "no")]),
            400,
            {"issues": [{"path": ["a", "b"], "message": "no"}]},
        ),
        (errors.NotFound(), 404, {}),
    ],
    ids=lambda value: value.code if isinstance(value, TenantryError) else "",
)
def test_code_and_details_are_those_of_graphql(error: TenantryError, status: int, details: dict[str, object]) -> None:
    answer = answers.refusal(error)
    assert answer.status_code == status
    [told] = orjson.loads(answer.body)["errors"]
    assert told == {"message": error.message, "extensions": {"code": error.code, **details}}
    assert told["extensions"] == shown.extensions(error)
    assert answer.headers.get("Retry-After") == ("3" if status == 429 else "1" if status == 503 else None)
