"""A TCP proxy on loopback that fails when it is told to: cut, frozen, slow, thin, half open, or stopped at a text."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from urllib.parse import urlsplit

_CHUNK = 64 * 1024
_REMEMBERED = 64 * 1024
_THIN_PART = 128
_CLOSE_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER that makes the kernel send RST instead of FIN."""


class Trap:
    """Stops one connection at a place in what its client sends.

    Args:
        texts: to be seen in this order on one connection.
        answer: False holds the last text back from the server; True lets it through and holds the server's answer.
    """

    def __init__(self, texts: tuple[bytes, ...], answer: bool) -> None:
        self.texts = texts
        self.answer = answer
        self.taken = False
        self._sprung = threading.Event()
        self._open = threading.Event()

    def wait(self, seconds: float = 20.0) -> None:
        """Wait until a connection stands in the trap.

        Raises:
            AssertionError: none came within that time.
        """
        assert self._sprung.wait(seconds), f"nothing sent {b' '.join(self.texts)!r} within {seconds} s"

    def release(self) -> None:
        """Let what is held go on its way."""
        self._open.set()

    def hold(self) -> None:
        """Called by the connection: stand here until released."""
        self._sprung.set()
        self._open.wait()


class Proxy:
    """Forwards connections to one server.

    Args:
        address: the server's URL, of which host and port are taken.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        assert parts.hostname is not None
        assert parts.port is not None
        self.target = (parts.hostname, parts.port)
        self.flow = threading.Event()
        self.flow.set()
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._slowness: tuple[bytes, float] = (b"", 0.0)
        self._bytes_per_second = 0.0
        self._resetting = 0
        self._pieces = 0
        self._traps: list[Trap] = []
        self._connections: list[_Connection] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def through(self, address: str) -> str:
        """The address of a server, leading through this proxy."""
        parts = urlsplit(address)
        return parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{self._port}").geturl()

    @property
    def connections(self) -> int:
        """How many are open."""
        with self.lock:
            return sum(connection.open for connection in self._connections)

    def trap(self, *texts: bytes, answer: bool = False) -> Trap:
        """Lay a trap for the next connection that from now on sends these texts in this order; see `Trap`."""
        made = Trap(texts, answer)
        with self.lock:
            self._traps.append(made)
            for connection in self._connections:
                connection.text.clear()
        return made

    def freeze(self) -> None:
        """Accept everything, pass nothing on: the network is gone and nobody has said so."""
        self.flow.clear()

    def thaw(self) -> None:
        """Pass on again, what was held first."""
        self.flow.set()

    def slow(self, seconds: float, beginning: bytes = b"") -> None:
        """Hold back every piece that a client sends and that begins so, for so long; 0 ends it."""
        self._slowness = (beginning, seconds)

    def thin(self, bytes_per_second: float) -> None:
        """Let no more through in each direction of each connection; 0 ends it."""
        self._bytes_per_second = bytes_per_second

    def reset_each(self, number: int) -> None:
        """Reset the connection on which one in so many pieces is sent; 0 ends it."""
        self._resetting = number

    def swallow(self) -> None:
        """Half open: what the connections there are send arrives nowhere, and nobody says so; new ones are welcome."""
        with self.lock:
            for connection in self._connections:
                connection.swallows = True

    def cut(self) -> None:
        """Reset every connection; new ones are welcome."""
        with self.lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

    def close(self) -> None:
        """End the proxy and everything that goes through it."""
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self.flow.set()
        for trap in self._traps:
            trap.release()

    def due(self, data: bytes) -> float:
        """Called by a connection: when the piece that has come now is to be passed on."""
        beginning, seconds = self._slowness
        return time.monotonic() + (seconds if data.startswith(beginning) else 0.0)

    def squeeze(self, data: bytes) -> Iterator[bytes]:
        """Called by a connection: the parts of a piece, each when there is room for it."""
        while data and self._bytes_per_second:
            part, data = data[:_THIN_PART], data[_THIN_PART:]
            self.closing.wait(len(part) / self._bytes_per_second)
            yield part
        if data:
            yield data

    def resets(self) -> bool:
        """Called by a connection: whether the piece that it sends now is one too many."""
        with self.lock:
            self._pieces += 1
            return bool(self._resetting) and self._pieces % self._resetting == 0

    def caught(self, seen: dict[Trap, int], text: bytearray, data: bytes) -> Trap | None:
        """Called by a connection: the trap whose last text it now sends; each catches one connection once."""
        with self.lock:
            text += data
            del text[:-_REMEMBERED]
            for trap in self._traps:
                if trap.taken:
                    continue
                place = 0
                while seen.get(trap, 0) < len(trap.texts):
                    wanted = trap.texts[seen.get(trap, 0)]
                    found = text.find(wanted, place)
                    if found < 0:
                        break
                    place = found + len(wanted)
                    seen[trap] = seen.get(trap, 0) + 1
                if place:
                    del text[:place]
                if seen.get(trap, 0) == len(trap.texts):
                    trap.taken = True
                    return trap
        return None

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target, timeout=5)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            connection = _Connection(self, client, server)
            with self.lock:
                self._connections.append(connection)
            connection.start()


class _Connection:
    """One client's connection: a thread for each direction, and one for what is on its way to the server."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._answers: Trap | None = None
        self._seen: dict[Trap, int] = {}
        self.text = bytearray()
        self.swallows = False
        self._sent: SimpleQueue[tuple[float, bytes] | None] = SimpleQueue()
        self._closed = threading.Event()

    def start(self) -> None:
        """Start its threads."""
        threading.Thread(target=self._take, name="proxy-connection", daemon=True).start()
        for work in (self._deliver, self._down):
            threading.Thread(target=self._pass, args=(work,), name="proxy-connection", daemon=True).start()

    @property
    def open(self) -> bool:
        """Whether it has not been closed yet."""
        return not self._closed.is_set()

    def close(self) -> None:
        """Reset both sides."""
        self._closed.set()
        self._sent.put(None)
        for side in (self._client, self._server):
            _reset(side)

    def _pass(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError:
            pass
        finally:
            self.close()

    def _take(self) -> None:
        """What the client has sent reaches the server also when the client is gone by then."""
        try:
            while data := self._client.recv(_CHUNK):
                trap = self._proxy.caught(self._seen, self.text, data)
                if trap is not None and trap.answer:
                    self._answers = trap
                elif trap is not None:
                    trap.hold()
                if self._proxy.resets():
                    self.close()
                self._sent.put((self._proxy.due(data), data))
        except OSError:
            pass
        finally:
            self._sent.put(None)

    def _deliver(self) -> None:
        while (piece := self._sent.get()) is not None:
            due, data = piece
            self._closed.wait(max(0.0, due - time.monotonic()))
            self._forward(self._server, data)

    def _down(self) -> None:
        while data := self._server.recv(_CHUNK):
            trap, self._answers = self._answers, None
            if trap is not None:
                trap.hold()
            self._forward(self._client, data)

    def _forward(self, side: socket.socket, data: bytes) -> None:
        for part in self._proxy.squeeze(data):
            self._proxy.flow.wait()
            if not (self._closed.is_set() or self.swallows):
                side.sendall(part)


def _reset(side: socket.socket) -> None:
    try:
        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_AT_ONCE)
        side.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    side.close()


@contextmanager
def to(address: str) -> Iterator[Proxy]:
    """A proxy to the server of that address, until the block ends."""
    made = Proxy(address)
    try:
        yield made
    finally:
        made.close()
