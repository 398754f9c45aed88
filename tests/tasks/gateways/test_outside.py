"""No address that a tenant names leads into our own network, however it is written. Over real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from tasks.gateways import outside
from tasks.gateways.outside import Guarded, Refused, Resolver

VERIFY = ssl.create_default_context()
INSIDE = [
    "https://127.0.0.1/", "https://127.1/", "https://0177.0.0.1/", "https://2130706433/", "https://0x7f000001/",
    "https://0.0.0.0/", "https://localhost/", "https://[::1]/", "https://[::]/", "https://[::ffff:10.0.0.1]/",
    "https://[::ffff:127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://[fd00::1]/",
    "https://[fe80::1]/", "https://[2001:0:7f00:1::]/", "https://10.0.0.1/", "https://172.16.0.1/",
    "https://192.168.1.1/", "https://100.64.0.1/", "https://169.254.169.254/latest/meta-data/", "https://224.0.0.1/",
    "https://255.255.255.255/", "https://198.18.0.1/", "https://[ff02::1]/",
]  # fmt: skip
OTHER = ["http://93.184.215.14/", "https://93.184.215.14:6379/", "https://user@93.184.215.14/", "https://a:b@1.1.1.1/"]
PUBLIC = ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2001:4860:4860::8888"]


class Door:
    """An HTTP server on loopback that says whether anybody came."""

    def __init__(self) -> None:
        self.came: list[str] = []
        self.status = 200
        self.answer = b"{}"
        self.headers: dict[str, str] = {}
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                door.came.append(self.headers["Host"])
                self.send_response_only(door.status)
                for name, value in door.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(door.answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def door() -> Iterator[Door]:
    with closing(Door()) as made:
        yield made


async def _get(url: str, **options: Any) -> httpx2.Response:
    async with httpx2.AsyncClient(
        transport=Guarded(VERIFY, Resolver(), **options), trust_env=False, timeout=5
    ) as client:
        return await client.get(url)


@pytest.mark.parametrize("url", INSIDE + OTHER)
async def test_an_address_inside_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises((Refused, httpx2.InvalidURL)):
        await _get(url)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_outside_is_public(address: str) -> None:
    assert outside.is_public(address)


async def test_a_name_with_one_address_inside_among_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", ("1.1.1.1", 443)), (0, 0, 0, "", ("127.0.0.1", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(Refused, match="not a public one"):
        await _get("https://mixed.example/")


async def test_a_name_is_looked_up_once_and_what_was_checked_is_called(
    monkeypatch: pytest.MonkeyPatch, door: Door
) -> None:
    """A server of names that answers something else the second time is never asked a second time."""
    asked: list[str] = []

    real = socket.getaddrinfo

    def look_up(host: str, *rest: Any, **options: Any) -> Any:
        if host != "rebinding.example":
            return real(host, *rest, **options)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    answer = await _get(f"http://rebinding.example:{door.port}/", plain=True)
    assert (answer.status_code, asked) == (200, ["rebinding.example"])
    assert door.came == [f"rebinding.example:{door.port}"]


class Names:
    """A server of names that is silent about `*.silent.example` until it is told to speak."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.speak = threading.Event()

    def look_up(self, host: str, *_: Any, **__: Any) -> list[Any]:
        self.asked.append(host)
        if host.endswith("silent.example"):
            self.speak.wait()
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("1.1.1.1", 0))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made.look_up)
    yield made
    made.speak.set()


async def test_a_server_of_names_that_is_silent_about_one_host_holds_up_no_other(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver()
    silent = [asyncio.create_task(resolver.look_up("one.silent.example")) for _ in range(100)]
    assert await resolver.look_up("fast.example") == ["1.1.1.1"]
    assert not any(task.done() for task in silent)
    monkeypatch.setattr(outside, "_LOOK_UP_SECONDS", 0.01)
    with pytest.raises(httpx2.ConnectError, match="not known"):
        await resolver.look_up("one.silent.example")
    with pytest.raises(httpx2.ConnectError, match="a moment ago"):
        await resolver.look_up("one.silent.example")
    assert sorted(names.asked) == ["fast.example", "one.silent.example"], "all who ask share one look-up"
    names.speak.set()
    told = await asyncio.gather(*silent, return_exceptions=True)
    assert {type(error) for error in told} == {httpx2.ConnectError}


async def test_no_more_names_are_looked_up_at_once_than_there_is_room_for(names: Names) -> None:
    resolver = Resolver()
    silent = [asyncio.create_task(resolver.look_up(f"{number}.silent.example")) for number in range(64)]
    await asyncio.sleep(0)
    with pytest.raises(httpx2.ConnectError, match="too many"):
        await resolver.look_up("fast.example")
    names.speak.set()
    await asyncio.gather(*silent, return_exceptions=True)
    assert await resolver.look_up("fast.example") == ["1.1.1.1"]


async def test_a_redirect_is_not_followed(door: Door) -> None:
    door.status = 302
    door.headers = {"Location": "http://169.254.169.254/latest/"}
    answer = await _get(f"http://127.0.0.1:{door.port}/", plain=True)
    assert (answer.status_code, answer.history, len(door.came)) == (302, [], 1)


async def test_an_answer_that_does_not_end_is_cut_off(door: Door) -> None:
    door.answer = b"x" * (2 * 1024 * 1024)
    with pytest.raises(Refused, match="too large"):
        await _get(f"http://127.0.0.1:{door.port}/", plain=True)


async def test_a_compressed_answer_is_refused_before_it_is_unpacked(door: Door) -> None:
    door.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(Refused, match="compressed"):
        await _get(f"http://127.0.0.1:{door.port}/", plain=True)


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, door: Door) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await _get(f"http://127.0.0.1:{door.port}/", plain=True)).status_code == 200


async def test_a_host_of_our_own_network_that_operators_named_may_be_called() -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]  # Nobody listens: what counts is that it was tried.
        with pytest.raises(httpx2.ConnectError):
            await _get(f"https://localhost:{port}/", inner_hosts=["localhost"])
        with pytest.raises(Refused):
            await _get(f"http://localhost:{port}/", inner_hosts=["localhost"])
