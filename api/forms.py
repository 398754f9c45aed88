"""What the routes under `/auth` share: JSON bodies in, expected failures in one form out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api import answers
from api.answers import Json
from tenants.errors import InvalidInput, Issue, TenantryError
from tenants.logins import Tokens

Handler = Callable[[Request], Awaitable[Response]]
_LONGEST_FIELD = 2000


def answering(handler: Handler) -> Handler:
    """A route that answers expected failures."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except TenantryError as error:
            return answers.refusal(error)

    return answer


async def read(request: Request, *names: str) -> list[str]:
    """The named texts of a JSON body.

    Raises:
        InvalidInput: it is none, or one of them is missing, empty, too long or holds a null.
    """
    given = await _body(request)
    return [_text(given, name) for name in names]


async def read_optional(request: Request, *names: str) -> list[str | None]:
    """The named texts of a JSON body, None for those that are left out.

    Raises:
        As `read`.
    """
    given = await _body(request)
    return [None if given.get(name) is None else _text(given, name) for name in names]


def show(tokens: Tokens, status: int = 200) -> Json:
    """The answer to who has proved who they are."""
    return Json({"accessToken": tokens.access, "refreshToken": tokens.refresh, "expiresIn": tokens.expires_in}, status)


def agent(request: Request) -> str | None:
    """What the caller says they use."""
    return request.headers.get("user-agent", "").replace("\0", "") or None


async def _body(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidInput("Send application/json.")
    try:
        given = orjson.loads(await request.body())
    except ValueError:
        raise InvalidInput("The body is not JSON.") from None
    return given if isinstance(given, dict) else {}


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= _LONGEST_FIELD or "\0" in value:
        message = f"must be text of 1 to {_LONGEST_FIELD} characters"
        raise InvalidInput(issues=[Issue((name,), message)])
    return value
