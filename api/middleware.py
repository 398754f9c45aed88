"""Around every request: its id, the security headers, the limit of its body, and masked failures."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import answers, metrics
from schema.errors import MASKED

log = structlog.get_logger(__name__)

_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
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
        body_bytes: the largest body of any request.
    """

    def __init__(self, app: ASGIApp, *, body_bytes: int) -> None:
        self._app = app
        self._body_bytes = body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        scope["request_id"] = _given_id(scope) or secrets.token_hex(16)
        # Each request is a task of its own, and so has a context of its own.
        structlog.contextvars.bind_contextvars(request_id=scope["request_id"])
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
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
                await self._app(scope, body.receive, answer)
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
