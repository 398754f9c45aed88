"""Fault row 49: clients that never read hold up themselves, and nobody else."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest
import redis
from websockets.frames import Frame, Opcode

from tenants import ids, names
from tenants.context import Principal
from tests.support import apis, streams
from tests.support.apis import Api, Caller
from tests.support.installations import Installation, eventually
from tests.support.tiers import Tier

QUERY = (
    "subscription { runUpdates { kind runId sequence state coalesced"
    " progress { current total message } run { args } } }"
)
RUNS, UPDATES = 5, 4000
MESSAGE = "x" * 400
PINGS = {"UVICORN_WS_PING_INTERVAL": "1", "UVICORN_WS_PING_TIMEOUT": "1"}


@pytest.fixture(scope="module")
def api(installation: Installation) -> Iterator[Api]:
    """An API that waits as long as it does by itself until it takes a client for gone."""
    with apis.running(installation) as started:
        yield started


def _frame(message: object) -> bytes:
    return Frame(Opcode.TEXT, json.dumps(message).encode()).serialize(mask=True)


@contextmanager
def _deaf(caller: Caller) -> Iterator[socket.socket]:
    """A client that subscribes to all there is, over a socket that takes next to nothing, and reads none of it."""
    parts = urlsplit(caller.url)
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect((parts.hostname, parts.port))
        key = base64.b64encode(os.urandom(16)).decode()
        raw.sendall(
            f"GET /graphql HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {streams.PROTOCOL}\r\n\r\n".encode()
        )
        assert raw.recv(4096).startswith(b"HTTP/1.1 101")
        payload = {"authorization": f"Bearer {caller.credential}"}
        raw.sendall(_frame({"type": "connection_init", "payload": payload}))
        assert b"connection_ack" in raw.recv(4096)
        raw.sendall(_frame({"id": "1", "type": "subscribe", "payload": {"query": QUERY}}))
        yield raw


def _resident(api: Api) -> int:
    """Bytes of memory that the server's process has."""
    status = Path(f"/proc/{api.installation.processes[api.name].pid}/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def _sockets(api: Api) -> int:
    """How many WebSockets the server says are open."""
    [line] = [
        line
        for line in api.client.get(f"{api.url}/metrics").text.splitlines()
        if line.startswith("tenantry_graphql_sockets ")
    ]
    return int(float(line.split()[1]))


def _progress(client: redis.Redis, tenant: Principal, run: str, current: int) -> None:
    """Tell of a run's progress as its worker does."""
    notice = {"k": "P", "r": str(ids.read("run", run)), "s": 1, "p": (current, UPDATES, MESSAGE)}
    client.xadd(names.stream(tenant.tenant), {"u": orjson.dumps([notice])}, maxlen=10_000)


def test_who_never_reads_costs_no_memory_and_holds_nobody_up(
    api: Api, tenant: Principal, other_tenant: Principal, tier: Tier
) -> None:
    many = tier(20, 500 // RUNS)
    caller, other = api.caller(tenant), api.caller(other_tenant)
    trigger = 'mutation { triggerBackgroundTask(taskName: "diagnostics.echo", delaySeconds: 3600) { taskId } }'
    runs = [caller.ask(trigger)["triggerBackgroundTask"]["taskId"] for _ in range(RUNS)]
    heard: dict[str, float] = {}
    with ExitStack() as stack:
        reader = stack.enter_context(streams.socket(caller))
        reader.subscribe(QUERY)
        assert {reader.receive()["payload"]["data"]["runUpdates"]["runId"] for _ in runs} == set(runs)
        before = _resident(api)
        deaf = [stack.enter_context(_deaf(caller)) for _ in range(many)]
        eventually(lambda: _sockets(api) == many + 1)

        def read() -> None:
            while len(heard) < RUNS or min(heard.values()) < UPDATES:
                update = reader.receive(30)["payload"]["data"]["runUpdates"]
                if update["progress"]:
                    heard[update["runId"]] = update["progress"]["current"]

        reading = threading.Thread(target=read)
        reading.start()
        client = redis.Redis.from_url(api.installation.redis_url)
        for current in range(1, UPDATES + 1):
            for run in runs:
                _progress(client, tenant, run, current)
            if current % 400 == 0:
                assert other.ask("{ runs { nodes { id } } viewer { kind } }")
        client.close()
        reading.join(60)
        assert heard == dict.fromkeys(runs, UPDATES), "who reads has heard the last of each"
        unbounded = many * UPDATES * RUNS * len(MESSAGE)
        assert _resident(api) - before < unbounded / 5
        with streams.socket(other) as socket_:
            socket_.subscribe(QUERY)
            made = other.ask(trigger)["triggerBackgroundTask"]["taskId"]
            assert next(socket_.updates("runUpdates"))["runId"] == made
        late = _rest(deaf[0], runs)
    assert late, "who reads at last is told the latest, and how many that stands for"
    eventually(lambda: _sockets(api) == 0)


def _rest(raw: socket.socket, runs: list[str]) -> bool:
    """Read what a deaf client was sent, until it has heard the last of each run."""
    raw.settimeout(30)
    text, last = "", f'"current":{UPDATES}.0'
    while text.count(last) < len(runs):
        got = raw.recv(1 << 20)
        if not got:
            return False
        text += got.decode("utf-8", "replace")
    return text.count('"current"') < UPDATES and '"coalesced":0' in text


def test_a_client_that_answers_no_ping_is_put_out(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    with apis.running(installation, "pinging", **PINGS) as api:
        caller = api.caller(tenant)
        with streams.socket(api.caller(other_tenant)) as reader, _deaf(caller) as raw:
            eventually(lambda: _sockets(api) == 2)
            eventually(lambda: _sockets(api) == 1, 20)
            reader.subscribe("{ viewer { kind } }")
            assert reader.receive()["type"] == "next", "who answers pings stays"
            assert raw.fileno() > 0
