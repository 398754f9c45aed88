"""Calls to addresses that tenants name: over TLS to public hosts, never into our own network, small and soon over."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from concurrent.futures import Future
from ssl import SSLContext

import httpx2

_ANSWER_BYTES = 256 * 1024
_LOOK_UP_SECONDS = 5.0
_AGAIN_SECONDS = 10.0
"""How long a name that was not found is not looked up again."""
_MOST_LOOK_UPS = 64
_REMEMBERED = 1000
_PUBLIC_6 = ipaddress.ip_network("2000::/3")
_TUNNELS_6 = [ipaddress.ip_network(net) for net in ("2001::/32", "2002::/16")]
"""Teredo and 6to4, whose addresses hold others of version 4."""


class Refused(httpx2.TransportError):
    """The address leads where no tenant may send us, or the answer is more than we take."""


class Resolver:
    """Looks hosts' names up, each in a thread of its own, which ends with the process.

    A look-up can't be called off: one whose name server is silent takes half a minute. So there is one at a time for
    each name, for all who ask, and never one that another name waits for.
    """

    def __init__(self) -> None:
        self._asked: dict[str, Future[list[str]]] = {}
        self._failed: OrderedDict[str, float] = OrderedDict()

    async def look_up(self, host: str) -> list[str]:
        """The addresses that a host's name stands for, however it is written.

        Raises:
            httpx2.ConnectError: it is not known, was not a moment ago, or nobody says so in time.
        """
        if self._failed.get(host, 0.0) > time.monotonic():
            raise httpx2.ConnectError(f"{host} was not known a moment ago")
        asked = self._asked.get(host) or self._ask(host)
        try:
            async with asyncio.timeout(_LOOK_UP_SECONDS):
                found = await asyncio.shield(asyncio.wrap_future(asked))
        except TimeoutError:
            found = []
        if not found:
            self._failed[host] = time.monotonic() + _AGAIN_SECONDS
            self._failed.move_to_end(host)
            while len(self._failed) > _REMEMBERED:
                self._failed.popitem(last=False)
            raise httpx2.ConnectError(f"{host} is not known")
        return found

    def _ask(self, host: str) -> Future[list[str]]:
        if len(self._asked) >= _MOST_LOOK_UPS:
            raise httpx2.ConnectError(f"{host}: too many names are being looked up")
        asked: Future[list[str]] = Future()
        self._asked[host] = asked
        asked.add_done_callback(lambda _: self._asked.pop(host))
        threading.Thread(target=lambda: asked.set_result(_resolve(host)), name="resolver", daemon=True).start()
        return asked


class Guarded(httpx2.AsyncHTTPTransport):
    """Connects to the very address that it has checked, so that no second look-up can lead elsewhere.

    The host's name stays in the Host header and in the TLS handshake. No proxy from the environment is used, and no
    connection is kept for another call.

    Args:
        verify: what certificates are checked by.
        resolver: what looks names up.
        inner_hosts: hosts that may be called although they are in our own network.
        plain: whether http, any port, and every address will do: in development.
    """

    def __init__(
        self, verify: SSLContext, resolver: Resolver, *, inner_hosts: Collection[str] = (), plain: bool = False
    ) -> None:
        super().__init__(verify=verify, trust_env=False, limits=httpx2.Limits(max_keepalive_connections=0))
        self._resolver = resolver
        self._inner_hosts = frozenset(inner_hosts)
        self._plain = plain

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """
        Raises:
            Refused: the address leads where it must not, or the answer is compressed.
            httpx2.TransportError: the host can't be reached.
        """
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        inside = self._plain or url.host in self._inner_hosts
        if url.scheme != "https" and not self._plain:
            raise Refused(f"{url.host}: only https will do")
        if (port != 443 and not inside) or url.userinfo:
            raise Refused(f"{url.host}: no other port than 443, and no user")
        addresses = await self._resolver.look_up(url.raw_host.decode("ascii"))
        if not inside and not all(map(is_public, addresses)):
            raise Refused(f"{url.host}: its address is not a public one")
        request.headers["Accept-Encoding"] = "identity"
        request.extensions = {**request.extensions, "sni_hostname": url.host}
        request.url = url.copy_with(host=addresses[0])
        answer = await super().handle_async_request(request)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            await answer.aclose()
            raise Refused(f"{url.host}: a compressed answer was not asked for")
        assert isinstance(answer.stream, httpx2.AsyncByteStream)
        answer.stream = _Limited(answer.stream, _ANSWER_BYTES)
        return answer


class _Limited(httpx2.AsyncByteStream):
    """An answer's bytes as they come, up to so many."""

    def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
        self._stream = stream
        self._left = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            self._left -= len(part)
            if self._left < 0:
                raise Refused("the answer is too large")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, and not of this machine, its network, or a tunnel into it."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        return found in _PUBLIC_6 and found.is_global and not any(found in net for net in _TUNNELS_6)
    return found.is_global and not found.is_multicast


def _resolve(host: str) -> list[str]:
    """The addresses of a host; none where it is not known."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return []
    return [str(address[0]) for *_, address in found]
