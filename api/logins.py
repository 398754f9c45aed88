"""Passwords and refresh tokens over HTTP: log in, refresh, log out."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import answers, auth, metrics
from api.answers import Json
from api.auth import Authenticator
from api.backoff import BackOff
from tenants import identity, signing
from tenants.errors import InvalidInput, Issue, TenantryError, Unauthenticated, Unavailable
from tenants.identity import Tokens
from tenants.settings import Settings

_HASHERS = 2
_FREE_BY_ACCOUNT = 10
_FREE_BY_ADDRESS = 100
"""Many people can share an address."""
_MOST_WAITING = 32
_LONGEST_FIELD = 2000
_REFUSED = "The tenant, the e-mail address or the password is wrong."


class Logins:
    """The routes under `/auth`.

    Args:
        settings: of this installation.
        authenticator: the way to the database before and after a caller is known.
    """

    def __init__(self, settings: Settings, authenticator: Authenticator) -> None:
        self._auth = settings.auth
        self._authenticator = authenticator
        self._accounts = BackOff(_FREE_BY_ACCOUNT)
        self._addresses = BackOff(_FREE_BY_ADDRESS)
        self._hashers = ThreadPoolExecutor(_HASHERS, thread_name_prefix="passwords")
        self._waiting = 0

    def routes(self) -> list[Route]:
        """The routes, each of which answers expected failures in the one form."""
        return [
            Route("/auth/login", _answering(self.log_in), methods=["POST"]),
            Route("/auth/refresh", _answering(self.refresh), methods=["POST"]),
            Route("/auth/logout", _answering(self.log_out), methods=["POST"]),
        ]

    async def log_in(self, request: Request) -> Response:
        """Exchange tenant, e-mail address and password for tokens. Whatever is wrong, the answer is the same."""
        slug, email, password = await _read(request, "tenant", "email", "password")
        account = hashlib.sha256(f"{slug}:{email.strip().casefold()}".encode("utf-8", "replace")).hexdigest()
        address = request.client.host if request.client else ""
        self._accounts.check(account)
        self._addresses.check(address)
        try:
            found = await self._authenticator.look_up(identity.find_login, slug, identity.normalise(email))
        except InvalidInput:
            found = None
        if not await self._verify(found.password_hash if found else None, password) or found is None:
            self._accounts.fail(account)
            self._addresses.fail(address)
            metrics.LOGINS.labels("refused").inc()
            raise Unauthenticated(_REFUSED, reason="invalid")
        self._accounts.forgive(account)
        metrics.LOGINS.labels("accepted").inc()
        scope = self._authenticator.member(found.tenant, found.user)
        return _show(await scope.write(identity.open_login, self._auth, found.user))

    async def refresh(self, request: Request) -> Response:
        """Exchange a refresh token for the next pair; a second use ends the whole login."""
        [text] = await _read(request, "refreshToken")
        token = identity.read_refresh(self._auth.token_keys, text)
        scope = self._authenticator.member(token.tenant, token.session)
        tokens = await scope.write(identity.refresh, self._auth, token)
        if tokens is None:
            raise Unauthenticated("The login has ended: log in again.", reason="revoked")
        return _show(tokens)

    async def log_out(self, request: Request) -> Response:
        """End a login, named by its refresh token or by an access token in the header."""
        text = auth.bearer(request.headers.get("authorization"))
        if text is not None:
            access = signing.read_access(self._auth, text)
            tenant, session = access.tenant, access.session
        else:
            [sent] = await _read(request, "refreshToken")
            token = identity.read_refresh(self._auth.token_keys, sent)
            tenant, session = token.tenant, token.session
        await self._authenticator.member(tenant, session).write(identity.close_login, session)
        return Response(status_code=204)

    def close(self) -> None:
        """End the threads."""
        self._hashers.shutdown(wait=False, cancel_futures=True)

    async def _verify(self, password_hash: str | None, password: str) -> bool:
        """Verify in a thread: a few at a time, and no longer a line than can be served in seconds."""
        if self._waiting >= _MOST_WAITING:
            raise Unavailable("Too many logins at once: try again in a second.", retry_after_seconds=1)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._hashers, identity.verify_password, password_hash, password
            )
        finally:
            self._waiting -= 1


def _answering(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except TenantryError as error:
            return answers.refusal(error)

    return answer


async def _read(request: Request, *names: str) -> list[str]:
    """The named texts of a JSON body."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidInput("Send application/json.")
    try:
        given: Any = orjson.loads(await request.body())
    except ValueError:
        raise InvalidInput("The body is not JSON.") from None
    values = [given.get(name) if isinstance(given, dict) else None for name in names]
    issues = [
        Issue((name,), f"must be text of 1 to {_LONGEST_FIELD} characters")
        for name, value in zip(names, values, strict=True)
        if not isinstance(value, str) or not 1 <= len(value) <= _LONGEST_FIELD or "\0" in value
    ]
    if issues:
        raise InvalidInput(f"{issues[0].path[0]} {issues[0].message}.", issues=issues)
    return [str(value) for value in values]


def _show(tokens: Tokens) -> Json:
    return Json({"accessToken": tokens.access, "refreshToken": tokens.refresh, "expiresIn": tokens.expires_in})
