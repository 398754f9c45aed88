"""Answers outside GraphQL's execution, in the same form: a list of errors, each with its code."""

from __future__ import annotations

import math
from typing import Any

import orjson
from starlette.responses import Response

from schema import errors
from tenants.errors import TenantryError

_STATUS = {
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
    "TENANT_SUSPENDED": 403,
    "QUOTA_EXCEEDED": 403,
    "NOT_FOUND": 404,
    "CONFLICT": 409,
    "INVALID_STATE": 409,
    "RATE_LIMITED": 429,
    "UNAVAILABLE": 503,
    "BAD_USER_INPUT": 400,
    "PERSISTED_QUERY_NOT_FOUND": 200,  # As Apollo's server answers: it is no failure, but a part of the protocol.
}


class Json(Response):
    """A JSON response."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def failure(status: int, code: str, message: str, **extensions: Any) -> Json:
    """A failed request."""
    return Json({"errors": [{"message": message, "extensions": {"code": code, **extensions}}]}, status)


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to come back: in whole seconds, and never too early."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def refusal(error: TenantryError) -> Json:
    """An expected failure."""
    details = errors.extensions(error)
    answer = failure(_STATUS.get(error.code, 400), message=error.message, **details)
    if wait := details.get("retryAfterSeconds"):
        answer.headers.update(retry_after(wait))
    if answer.status_code == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer
