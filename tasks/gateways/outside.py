"""Calls to addresses that tenants name: over TLS to public hosts, never into our own network, small and soon over."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Collection
from ssl import SSLContext

import httpx2

_ANSWER_BYTES = 1024 * 1024
_PUBLIC_6 = ipaddress.ip_network("2000::/3")
_TUNNELS_6 = [ipaddress.ip_network(net) for net in ("2001::/32", "2002::/16")]
"""Teredo and 6to4, whose addresses hold others of version 4."""


class Refused(httpx2.TransportError):
    """The address leads where no tenant may send us, or the answer is more than we take."""


class Guarded(httpx2.AsyncHTTPTransport):
    """Connects to the very address that it has checked, so that no second look-up can lead elsewhere.

    The host's name stays in the Host header and in the TLS handshake. No proxy from the environment is used, and no
    connection is kept for another call.

    Args:
        verify: what certificates are checked by.
        inner_hosts: hosts that may be called although they are in our own network.
        plain: whether http, any port, and every address will do: in development.
    """

    def __init__(self, verify: SSLContext, *, inner_hosts: Collection[str] = (), plain: bool = False) -> None:
        super().__init__(verify=verify, trust_env=False, limits=httpx2.Limits(max_keepalive_connections=0))
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
        addresses = await _resolve(url.raw_host.decode("ascii"), port)
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


async def _resolve(host: str, port: int) -> list[str]:
    """The addresses that a host's name stands for, however it is written."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise httpx2.ConnectError(f"{host} is not known") from None
    return [str(address[0]) for *_, address in found]
