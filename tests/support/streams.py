"""Subscriptions for tests: a WebSocket of the protocol graphql-transport-ws, and server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import redis
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tenants import names
from tests.support.apis import Caller

PROTOCOL = "graphql-transport-ws"
UPDATES = (
    "subscription($id: ID!, $after: Cursor) { taskUpdates(taskId: $id, after: $after)"
    " { kind cursor runId sequence state attempt progress { current total fraction message } coalesced"
    " run { id state } } }"
)
ALL_UPDATES = (
    "subscription($filter: RunFilter, $after: Cursor) { runUpdates(filter: $filter, after: $after)"
    " { kind cursor runId sequence state } }"
)


def notices(client: redis.Redis, tenant: UUID) -> list[dict[str, Any]]:
    """What stands in a tenant's stream in Redis."""
    entries: Any = client.xrange(names.stream(tenant))
    return [notice for _, entry in entries for notice in json.loads(entry[b"u"])]


@dataclass(frozen=True, slots=True)
class Socket:
    """An open WebSocket."""

    connection: ClientConnection

    def send(self, message: object) -> None:
        """One frame; text as it is, anything else as JSON."""
        self.connection.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def receive(self, seconds: float = 10) -> dict[str, Any]:
        """The next frame."""
        message: dict[str, Any] = json.loads(self.connection.recv(timeout=seconds))
        return message

    def begin(self, credential: str | None) -> dict[str, Any]:
        """Introduce the caller; the server's answer."""
        payload = {} if credential is None else {"authorization": f"Bearer {credential}"}
        self.send({"type": "connection_init", "payload": payload})
        return self.receive()

    def subscribe(self, query: str, identifier: str = "1", **variables: Any) -> None:
        """Start an operation."""
        self.send({"id": identifier, "type": "subscribe", "payload": {"query": query, "variables": variables}})

    def updates(self, field: str, identifier: str = "1") -> Iterator[dict[str, Any]]:
        """What an operation sends, until it is complete."""
        while True:
            message = self.receive()
            if message["type"] == "complete":
                return
            assert (message["type"], message["id"]) == ("next", identifier), message
            yield message["payload"]["data"][field]

    def closed(self, seconds: float = 10) -> int:
        """Wait until the server closes; its code. Frames that come before are dropped."""
        try:
            while True:
                self.connection.recv(timeout=seconds)
        except ConnectionClosed as closed:
            return 1006 if closed.rcvd is None else int(closed.rcvd.code)


@contextmanager
def socket(caller: Caller, *, begun: bool = True, protocol: str | None = PROTOCOL, **options: Any) -> Iterator[Socket]:
    """A WebSocket to the caller's API, introduced unless told otherwise."""
    address = caller.url.replace("http://", "ws://") + "/graphql"
    protocols = None if protocol is None else [Subprotocol(protocol)]
    with connect(address, subprotocols=protocols, proxy=None, max_size=None, **options) as connection:
        opened = Socket(connection)
        if begun:
            assert opened.begin(caller.credential)["type"] == "connection_ack"
        yield opened


@contextmanager
def events(caller: Caller, query: str, **variables: Any) -> Iterator[Iterator[tuple[str, Any]]]:
    """The server-sent events of an operation: each event's name and its data."""
    with caller.client.stream(
        "POST",
        f"{caller.url}/graphql",
        json={"query": query, "variables": variables},
        headers={**caller.headers, "Accept": "text/event-stream"},
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream"), response.read()
        yield _events(response.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data:"):
            text = line.removeprefix("data:").strip()
            yield name, json.loads(text) if text else None
