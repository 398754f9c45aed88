"""Around every request: its id, its host and address, the security headers, the limit of its body, masked failures."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from api import answers, metrics
from api.limits import OPEN, Limits
from schema.errors import MASKED
from tenants.errors import RateLimited
from tenants.log import hiding
from tenants.settings import Api

log = structlog.get_logger(__name__)

_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), camera=(), microphone=()",
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "Cache-Control": "no-store",
}


def request_id(scope: Scope) -> str:
    """The id that names this request in logs and errors."""
    found: str = scope.setdefault("request_id", secrets.token_hex(16))
    return found


class Envelope:
    """The outermost layer.

    Args:
        app: what it wraps.
        settings: of the edge.
        limits: how many requests may come from where.
    """

    def __init__(self, app: ASGIApp, *, settings: Api, limits: Limits) -> None:
        self._app = app
        self._body_bytes = settings.bulk_body_bytes
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        scope["request_id"] = _given_id(scope) or secrets.token_hex(16)
        # Each request is a task of its own, and so has a context of its own.
        structlog.contextvars.bind_contextvars(request_id=scope["request_id"])
        refusal = self._refuse(scope)
        with hiding():
            if scope["type"] == "http":
                await self._serve(refusal or self._app, scope, receive, send)
            elif refusal is not None:
                await WebSocket(scope, receive, send).send_denial_response(refusal)
            else:
                await self._app(scope, receive, send)

    def _refuse(self, scope: Scope) -> Response | None:
        """The answer to a request that is not looked at any further."""
        host = _HOST.fullmatch(_header(scope, b"host").decode("latin-1").lower())
        if host is None or (self._hosts and host[1] not in self._hosts and not scope["path"].startswith(OPEN)):
            return answers.failure(400, "BAD_USER_INPUT", "This server does not answer to this Host.")
        try:
            self._limits.meet(scope)
        except RateLimited as error:
            return answers.refusal(error)
        return None

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, scope["request_id"])
            await send(message)

        body = _Limited(receive, self._body_bytes)
        try:
            if _declared(scope) > self._body_bytes:
                await _too_large(self._body_bytes)(scope, receive, answer)
            else:
                await app(scope, body.receive, answer)
        except _TooLarge:
            await _too_large(self._body_bytes)(scope, receive, answer)
        except Exception:
            log.exception("request_failed", path=scope["path"], method=scope["method"])
            if status:
                raise
            response = answers.failure(500, "INTERNAL_SERVER_ERROR", MASKED, requestId=scope["request_id"])
            await response(scope, receive, answer)
        finally:
            metrics.observe(scope, status, time.perf_counter() - started)


class _TooLarge(Exception):
    """More bytes came than a body may have."""


class _Limited:
    """Counts the body's bytes as they come."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._left = most

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise _TooLarge
        return message


def _too_large(most: int) -> ASGIApp:
    return answers.failure(413, "BAD_USER_INPUT", f"A request must be at most {most} bytes.")


def _declared(scope: Scope) -> int:
    length = _header(scope, b"content-length")
    return int(length) if length.isdigit() else 0


def _given_id(scope: Scope) -> str | None:
    text = _header(scope, b"x-request-id").decode("latin-1")
    return text if _ID.fullmatch(text) else None


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _add_headers(message: MutableMapping[str, Any], identifier: str) -> None:
    headers: list[tuple[bytes, bytes]] = message["headers"]
    present = {name.lower() for name, _ in headers}
    headers.extend(header for header in _RAW if header[0] not in present)
    headers.append((b"x-request-id", identifier.encode()))


_RAW = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
