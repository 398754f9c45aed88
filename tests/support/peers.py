"""A provider outside, over a real socket: it counts what it is asked, and answers, dies or hangs as it is told."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str]]
"""Status and headers."""
_CLOSE_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER that makes the kernel send RST instead of FIN."""


class Dies(Exception):
    """The provider did what it was asked, and its answer gets lost."""


def always(status: int, **headers: str) -> Callable[[str, str], Answer]:
    """The same answer to everybody."""
    return lambda method, key: (status, headers)


class Peer:
    """Answers every request with what `answers(method, idempotency key)` returns; raising Dies it breaks the line."""

    def __init__(self) -> None:
        self.answers: Callable[[str, str], Answer] = always(200)
        self.done: Counter[str] = Counter()
        """Idempotency key → how often it was called by POST."""
        self.places: Counter[str] = Counter()
        """Path → how often it was called by POST."""
        peer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with lock:
                    peer.done[self.headers.get("Idempotency-Key", "")] += 1
                    peer.places[self.path] += 1
                self.do_GET()

            def do_GET(self) -> None:
                try:
                    status, headers = peer.answers(self.command, self.headers.get("Idempotency-Key", ""))
                except Dies:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_AT_ONCE)
                    self.close_connection = True
                    return
                self.send_response_only(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    if status != 204 or name != "Content-Length":
                        self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, name="peer", daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
