"""One WebSocket of the protocol graphql-transport-ws: what it may send, and how long it lives.

Source: the protocol's own description, https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, cast

from starlette.websockets import WebSocketState
from strawberry.asgi import ASGIWebSocketAdapter
from strawberry.http.exceptions import NonJsonMessageReceived, NonTextMessageReceived
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import BaseGraphQLTransportWSHandler
from strawberry.subscriptions.protocols.graphql_transport_ws.types import (
    ConnectionInitMessage,
    Message,
    SubscribeMessage,
    SubscribeMessagePayload,
)

from api import auth, metrics
from schema import errors
from schema.context import Context
from tenants.context import Principal
from tenants.errors import InvalidInput, RateLimited, TenantryError, Unauthenticated, Unavailable

if TYPE_CHECKING:
    from api.graphql import View

_REVOKED, _EXPIRED, _AGAIN, _TOO_BIG, _IDLE = 4401, 4403, 1013, 1009, 1000
_LONGEST_ID = 200


class Socket(ASGIWebSocketAdapter):
    """A socket that knows how large the last frame was, and refuses what is too large."""

    last_size = 0

    async def iter_json(self, *, ignore_parsing_errors: bool = False) -> AsyncGenerator[object, None]:
        """Every frame as JSON, until the client goes."""
        most = cast("View", self.view).settings.api.bulk_body_bytes
        while self.ws.application_state != WebSocketState.DISCONNECTED:
            frame = await self.ws.receive()
            if frame["type"] == "websocket.disconnect":
                return
            text = frame.get("text")
            if text is None:
                raise NonTextMessageReceived
            self.last_size = len(text.encode())
            if self.last_size > most:
                await self.close(_TOO_BIG, "Message too big")
                return
            try:
                message = self.view.decode_json(text)
            except ValueError as error:
                raise NonJsonMessageReceived from error
            yield message

    async def close(self, code: int, reason: str) -> None:
        """Close it, once."""
        if self.ws.application_state != WebSocketState.DISCONNECTED:
            await super().close(code, reason)


class SocketHandler(BaseGraphQLTransportWSHandler[Context, None]):
    """The protocol, with every frame checked, and with the token or key checked for as long as the socket lives."""

    _text = ""
    _watch: asyncio.Task[None] | None = None
    _used = 0.0
    """When something last ran here, by the loop's clock."""
    _idle: asyncio.TimerHandle | None = None

    async def handle(self) -> None:
        """Serve the socket until it closes."""
        with metrics.SOCKETS.track_inprogress():
            await super().handle()

    async def handle_message(self, message: Message) -> None:
        """Answer one frame; a malformed one closes the socket with 4400."""
        if problem := _malformed(message):
            await self.handle_invalid_message(problem)
            return
        await super().handle_message(message)

    async def handle_subscribe(self, message: SubscribeMessage) -> None:
        """Start an operation for whom the token speaks now, which may be less than when the socket was opened."""
        if self.connection_acknowledged:
            self._used = asyncio.get_running_loop().time()
            try:
                await self._admit()
                self._find_document(message["payload"])
            except Unauthenticated as refusal:
                await self._close(refusal.reason)
                return
            except TenantryError as refusal:
                payload = [{"message": refusal.message, "extensions": errors.extensions(refusal)}]
                await self.websocket.send_json({"id": message["id"], "type": "error", "payload": payload})
                return
        await super().handle_subscribe(message)

    async def handle_connection_init(self, message: ConnectionInitMessage) -> None:
        """Let the caller in, or close with 4401 for a token that will not do and 4403 for one that has expired."""
        if self.connection_init_received:
            await super().handle_connection_init(message)
            return
        try:
            self._text = self._bearer(message.get("payload") or {})
            await self._admit()
        except Unauthenticated as refusal:
            await self._close(refusal.reason)
            return
        except (Unavailable, RateLimited):
            await self.websocket.close(_AGAIN, "Try again later")
            return
        if not self._take_place():
            await self.websocket.close(_AGAIN, "Too many sockets")
            return
        await super().handle_connection_init(message)
        self._wait_for_use()
        self._watch = asyncio.create_task(self._end_with(self.context.caller))

    async def shutdown(self) -> None:
        """End what runs for this socket."""
        if self._idle is not None:
            self._idle.cancel()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        await super().shutdown()

    async def _admit(self) -> None:
        await cast("View", self.view).admit(self.context, self._text, cast("Socket", self.websocket).ws)

    def _bearer(self, payload: dict[str, object]) -> str:
        given = {name.lower(): value for name, value in payload.items()}.get("authorization")
        if given is None:
            given = cast("Socket", self.websocket).ws.headers.get("authorization")
        if not isinstance(given, str):
            raise Unauthenticated
        text = auth.bearer(given)
        assert text is not None
        return text

    def forget_id(self, id: str) -> None:
        """Note that an operation has ended."""
        self._used = asyncio.get_running_loop().time()
        super().forget_id(id)

    def _take_place(self) -> bool:
        """Take one of the tenant's places instead of one of the address's."""
        limits, socket = cast("View", self.view).limits, cast("Socket", self.websocket).ws
        taken = limits.sockets_by_tenant.take(socket, self.context.caller.tenant)
        if taken:
            limits.sockets_by_address.leave(socket)
        return taken

    def _wait_for_use(self) -> None:
        """Close the socket once nothing has run on it for a while; ping and pong are no use."""
        loop = asyncio.get_running_loop()
        longest = cast("View", self.view).settings.api.idle_socket_seconds
        if self._idle is None or self.operations:
            self._used = loop.time()
        left = self._used + longest - loop.time()
        if left > 0:
            self._idle = loop.call_later(left, self._wait_for_use)
        else:
            self._closing = loop.create_task(self.websocket.close(_IDLE, "Idle"))

    def _find_document(self, payload: SubscribeMessagePayload) -> None:
        """Put the text of the operation in the place of its hash, and refuse what is too large."""
        view = cast("View", self.view)
        view.charge(self.context, cast("Socket", self.websocket).last_size)
        query = view.find_document(self.context, payload.get("query"), payload.get("extensions"))
        if query is None:
            raise InvalidInput("The payload must have a query.")
        if refusal := view.too_large(query, cast("Socket", self.websocket).last_size):
            raise InvalidInput(refusal)
        payload["query"] = query

    async def _end_with(self, caller: Principal) -> None:
        await self._close(await cast("View", self.view).authenticator.watch(self._text, caller))

    async def _close(self, reason: str) -> None:
        # Clients stop at 4401, and come back with a new token at 4403.
        if reason == "expired":
            await self.websocket.close(_EXPIRED, "Expired")
        else:
            await self.websocket.close(_REVOKED, "Permissions changed" if reason == "changed" else "Unauthorized")


def _malformed(message: object) -> str | None:
    """What is wrong with a frame, or None."""
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        return "A message must be an object with a type"
    payload = message.get("payload", {})
    match message["type"]:
        case "connection_init" | "ping" | "pong":
            return None if isinstance(payload, dict) else "The payload must be an object"
        case "complete":
            return _bad_id(message)
        case "subscribe":
            return _bad_id(message) or _bad_operation(message.get("payload"))
    return "Unknown message type"


def _bad_id(message: dict[str, Any]) -> str | None:
    given = message.get("id")
    return None if isinstance(given, str) and 1 <= len(given) <= _LONGEST_ID else "The id must be text"


def _bad_operation(payload: object) -> str | None:
    if not isinstance(payload, dict) or not isinstance(payload.get("query", ""), str):
        return "The payload must be an object with a query"
    if "query" not in payload and not payload.get("extensions"):
        return "The payload must have a query, or its hash"
    if not isinstance(payload.get("operationName"), (str, type(None))):
        return "operationName must be text"
    for name in ("variables", "extensions"):
        if not isinstance(payload.get(name), (dict, type(None))):
            return f"{name} must be an object"
    return None
