"""GraphQL over HTTP, server-sent events and WebSocket."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, NoReturn, cast

import orjson
from cross_web import AsyncHTTPRequestAdapter, HTTPException
from graphql import FieldNode, GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL
from strawberry.http import GraphQLHTTPResponse, GraphQLRequestData
from strawberry.http.base import BaseRequestProtocol
from strawberry.subscriptions import GRAPHQL_SSE_PROTOCOL, GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.types import ExecutionResult, SubscriptionExecutionResult

from api import answers, auth, limits
from api.auth import Authenticator
from api.documents import Documents
from api.limits import Limits
from api.middleware import request_id
from api.sockets import Socket, SocketHandler
from api.static import GRAPHIQL
from schema import costs, root
from schema.context import Context
from tasks.engine.streams import Hub
from tenants.context import Principal
from tenants.errors import RateLimited, TenantryError, Unauthenticated, Unavailable
from tenants.settings import Settings

QUERY_BYTES = 64 * 1024
STRANGER_BYTES = 64 * 1024
_FREE_BYTES, _BYTES_A_POINT = 16 * 1024, 512
_STANDARD_TYPE = "application/graphql-response+json"
_BULK_FIELD = "triggerBackgroundTasks"
_INIT_SECONDS = 5
_OPERATIONS = 20


def _beginning() -> Response:
    answer = Response()
    del answer.headers["content-length"]
    return answer


_USUAL, _STANDARD = _beginning(), _beginning()
"""What stands of an answer before its body is known; the same for all requests, as nobody changes it."""


class View(GraphQL[Context, None]):
    """The endpoint `/graphql`.

    Args:
        settings: of this installation.
        authenticator: verifies tokens and keys.
        hub: the live updates of this process.
        limits: what callers may use up.
        documents: what clients may ask for by its hash.
        stopping: set once this process is to end.
    """

    graphql_transport_ws_handler_class = SocketHandler
    websocket_adapter_class = Socket

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        hub: Hub,
        limits: Limits,
        documents: Documents,
        stopping: asyncio.Event,
    ) -> None:
        development = settings.environment == "development"
        super().__init__(
            root.build(introspection=development),
            graphql_ide="graphiql" if development else None,
            subscription_protocols=(GRAPHQL_TRANSPORT_WS_PROTOCOL, GRAPHQL_SSE_PROTOCOL),
            connection_init_wait_timeout=timedelta(seconds=_INIT_SECONDS),
            max_subscriptions_per_connection=_OPERATIONS,
            allowed_origins=settings.api.allowed_origins,
        )
        self.settings = settings
        self.authenticator = authenticator
        self.limits = limits
        self._hub = hub
        self._documents = documents
        self._stopping = stopping

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await self.run(request)
            if isinstance(response, StreamingResponse):
                self._take_place(request)
        except HTTPException as error:
            response = answers.failure(error.status_code, "BAD_USER_INPUT", error.reason)
        except TenantryError as error:
            response = answers.refusal(error)
        try:
            await response(scope, receive, send)
        finally:
            self._leave(request)

    async def get_context(self, request: Request | WebSocket, response: Response | WebSocket) -> Context:
        """The request's context. A refused token or key is told where a field needs one; on a socket, at its start."""
        context = Context(request_id(request.scope), self.settings, self._hub)
        if isinstance(request, WebSocket):
            return context
        try:
            text = auth.bearer(request.headers.get("authorization"))
            if text is not None:
                await self.admit(context, text, request)
                context.end = lambda: self._end(text, context.caller)
        except Unauthenticated as refusal:
            context.refusal = refusal
        if context.scope is None:
            context.budget = self.limits.strangers.of(limits.address(request.scope))
        request.state.context = context
        if request.method == "POST":
            self._admit_body(context, len(await request.body()))
        return context

    def _admit_body(self, context: Context, size: int) -> None:
        """Refuse what is too large before it is looked at."""
        if context.scope is None and size > STRANGER_BYTES:
            refusal = HTTPException(413, f"A request of a stranger must be at most {STRANGER_BYTES} bytes.")
            raise context.refusal or refusal
        self.charge(context, size)

    def charge(self, context: Context, size: int) -> None:
        """Charge for the bytes of a request or a frame, where there are many, beside what its operation costs.

        Raises:
            RateLimited: the caller has nothing left.
        """
        if size > _FREE_BYTES:
            if wait := context.budget.wait(1):
                raise RateLimited("Your budget is used up: wait, or send less.", retry_after_seconds=wait)
            context.budget.pour((size - _FREE_BYTES) // _BYTES_A_POINT)

    async def admit(self, context: Context, text: str, connection: HTTPConnection) -> None:
        """Let the caller in whom a token or a key speaks for, from where it comes.

        Raises:
            Unauthenticated, Unavailable: as `Authenticator.verify`.
            RateLimited: the caller sends too many requests.
        """
        verified = await self.authenticator.verify(text, auth.client_address(connection))
        context.budget = self.limits.admit(verified.principal)
        context.scope = self.authenticator.scope(verified.principal)
        context.suspended = verified.suspended

    def should_render_graphql_ide(self, request: BaseRequestProtocol) -> bool:
        return "extensions" not in request.query_params and super().should_render_graphql_ide(request)

    async def execute_operation(
        self,
        request: Request,
        request_adapter: AsyncHTTPRequestAdapter,
        request_data: GraphQLRequestData | list[GraphQLRequestData],
        context: Context,
        root_value: None,
        sub_response: Response,
    ) -> ExecutionResult | list[ExecutionResult] | SubscriptionExecutionResult:
        data = cast("GraphQLRequestData", request_data)  # Lists are refused before.
        if not isinstance(data.operation_name, str | None):
            raise HTTPException(400, "operationName must be text.")
        data.query = self.find_document(context, data.query, data.extensions)
        size = 0 if request.method == "GET" else len(await request_adapter.get_body())
        if refusal := self.too_large(data.query, size):
            raise HTTPException(413, refusal)
        return await super().execute_operation(request, request_adapter, data, context, root_value, sub_response)

    def find_document(self, context: Context, query: str | None, extensions: dict[str, Any] | None) -> str | None:
        """The text of an operation, which may be asked for by its hash.

        Raises:
            NotPersisted, InvalidInput, Forbidden: as `Documents.find`.
        """
        tenant = None if context.scope is None else context.scope.principal.tenant
        return self._documents.find(tenant, query, extensions)

    def too_large(self, query: str | None, size: int) -> str | None:
        """Why a request is too large, or None. Only a bulk trigger may be larger than others.

        Args:
            query: its query.
            size: how many bytes it has in all.
        """
        if query is not None and len(query.encode("utf-8", "replace")) > QUERY_BYTES:
            return f"A query must be at most {QUERY_BYTES} bytes: send values as variables."
        if size > self.settings.api.body_bytes and not _is_bulk(query or ""):
            return f"A request must be at most {self.settings.api.body_bytes} bytes."
        return None

    def parse_json(self, data: str | bytes) -> Any:
        value = super().parse_json(data)
        if not isinstance(value, dict | list):
            raise HTTPException(400, "Send a JSON object.")
        return value

    def decode_json(self, data: str | bytes) -> object:
        return orjson.loads(data)

    def encode_json(self, data: object) -> str:
        """An answer or a frame as text; one that is too large is replaced by an error that says so."""
        encoded = orjson.dumps(data)
        if len(encoded) > self.settings.api.answer_bytes:
            encoded = orjson.dumps(_too_long(cast("dict[str, Any]", data), self.settings.api.answer_bytes))
        return encoded.decode()

    async def get_sub_response(self, request: Request | WebSocket) -> Response:
        return _STANDARD if _STANDARD_TYPE in request.headers.get("accept", "") else _USUAL

    def create_response(
        self, response_data: GraphQLHTTPResponse | list[GraphQLHTTPResponse], sub_response: Response
    ) -> Response:
        answer = cast("dict[str, Any]", response_data)
        errors = answer.get("errors") or []
        codes = {error.get("extensions", {}).get("code") for error in errors}
        waits = [
            error["extensions"]["retryAfterSeconds"]
            for error in errors
            if "retryAfterSeconds" in error.get("extensions", {})
        ]
        standard = sub_response is _STANDARD
        status, headers = 200, {}
        if answer.get("data") is None and errors:
            if "UNAUTHENTICATED" in codes:
                status, headers = 401, {"WWW-Authenticate": "Bearer"}
            elif "RATE_LIMITED" in codes and waits:
                status, headers = 429, answers.retry_after(max(waits))
            elif "UNAVAILABLE" in codes and waits:
                status, headers = 503, answers.retry_after(max(waits))
            elif all("path" not in error for error in errors):
                # No resolver has run: the standard wants no `data` then, and another status.
                answer.pop("data", None)
                status = 400 if standard else 200
        return Response(
            self.encode_json(answer),
            status_code=status,
            headers=headers,
            media_type=_STANDARD_TYPE if standard else "application/json",
        )

    async def render_graphql_ide(self, request: Request) -> Response:
        return FileResponse(GRAPHIQL)

    async def _serve_socket(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        if GRAPHQL_TRANSPORT_WS_PROTOCOL not in scope["subprotocols"]:
            await socket.close()  # Before it was accepted: the handshake is answered with 403.
            return
        if not self.limits.sockets_by_address.take(socket, limits.address(scope)):
            refusal = RateLimited("Too many sockets: wait a moment.", retry_after_seconds=_INIT_SECONDS)
            await socket.send_denial_response(answers.refusal(refusal))
            return
        try:
            await self.run(socket)
        finally:
            self._leave(socket)

    def _take_place(self, request: Request) -> None:
        """Take one of the places of sockets for a stream over HTTP.

        Raises:
            RateLimited: all are taken.
        """
        scope = request.state.context.scope
        if scope is None:
            taken = self.limits.sockets_by_address.take(request, limits.address(request.scope))
        else:
            taken = self.limits.sockets_by_tenant.take(request, scope.principal.tenant)
        if not taken:
            raise RateLimited("Too many streams: wait a moment.", retry_after_seconds=_INIT_SECONDS)

    def _leave(self, connection: HTTPConnection) -> None:
        self.limits.sockets_by_address.leave(connection)
        self.limits.sockets_by_tenant.leave(connection)

    async def _end(self, text: str, caller: Principal) -> NoReturn:
        """Wait until a stream over HTTP must end."""
        watch = asyncio.ensure_future(self.authenticator.watch(text, caller))
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({watch, stop}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                raise Unauthenticated(
                    "Your login or API key has ended, or may do something else.", reason=watch.result()
                )
            raise Unavailable("This server is stopping: connect again.")
        finally:
            watch.cancel()
            stop.cancel()


def _too_long(answer: dict[str, Any], most: int) -> dict[str, Any]:
    message = f"The answer has more than {most} bytes: ask for less at once. What was changed stands."
    instead = {"data": None, "errors": [{"message": message, "extensions": {"code": "BAD_USER_INPUT"}}]}
    return {**answer, "payload": instead} if "payload" in answer else instead


def _is_bulk(query: str) -> bool:
    """Whether a query is one operation whose only root field triggers many runs."""
    try:
        document = parse(query, no_location=True, max_tokens=costs.TOKENS)
    except GraphQLError:
        return False
    if len(document.definitions) != 1:
        return False
    [operation] = document.definitions
    if not isinstance(operation, OperationDefinitionNode) or operation.operation is not OperationType.MUTATION:
        return False
    fields = operation.selection_set.selections
    return len(fields) == 1 and isinstance(fields[0], FieldNode) and fields[0].name.value == _BULK_FIELD
