"""Connections over psycopg2 whose calls end also when no answer comes.

A line may be half open: what is sent is acknowledged, as by a proxy, and nobody will ever answer. The server's own
limits of time don't help there, nor do keepalives. So a thread looks at what is being asked, and shuts the line of what
has waited for too long: the call then fails as on any connection that breaks.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import closing, suppress
from typing import Any
from weakref import WeakSet

import psycopg2
from psycopg2 import extensions

LINE: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 11_000,
}
"""How libpq notices a line that is cut: in about ten seconds."""
_TRANSACTION_SECONDS = 400.0
"""For a statement inside a transaction: longer than the server's own limit for any login."""
_LOOK_SECONDS = 0.2


class Connection(extensions.connection):
    """A `connection_factory` of psycopg2's.

    Its calls raise psycopg2.OperationalError when no answer has come in time, and it is then closed.
    """

    answer_seconds = 5.0
    """How long a statement in autocommit may wait for its answer; of a pool's, that is the one that tries the line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cursor_factory = _Cursor
        self.due: float | None = None
        """Until when what is being asked must be answered, by the monotonic clock."""
        _watch(self)

    def commit(self) -> None:
        """As psycopg2's."""
        self.due = time.monotonic() + _TRANSACTION_SECONDS
        try:
            super().commit()
        finally:
            self.due = None

    def shut(self) -> None:
        """End what waits on this connection. For another thread: `close` would wait for it too."""
        with (
            suppress(OSError, psycopg2.Error),
            # Another handle of the same socket; its family makes no difference here.
            closing(socket.fromfd(self.fileno(), socket.AF_INET, socket.SOCK_STREAM)) as line,
        ):
            line.shutdown(socket.SHUT_RDWR)


class _Cursor(extensions.cursor):
    connection: Connection

    def execute(self, query: Any, vars: Any = None) -> None:
        connection = self.connection
        connection.due = time.monotonic() + (
            connection.answer_seconds if connection.autocommit else _TRANSACTION_SECONDS
        )
        try:
            super().execute(query, vars)
        finally:
            connection.due = None


class _Watch:
    """The thread that looks after this process's connections, and after none that a fork left it."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._connections: WeakSet[Connection] = WeakSet()
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="database-watch", daemon=True).start()

    def add(self, connection: Connection) -> None:
        """Look after this one too, as long as it exists."""
        with self._lock:
            self._connections.add(connection)

    def _run(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            self._look()

    def _look(self) -> None:
        with self._lock:
            connections = list(self._connections)
        now = time.monotonic()
        for connection in connections:
            due = connection.due
            if due is not None and now > due:
                connection.shut()


_current: _Watch | None = None


def _watch(connection: Connection) -> None:
    global _current
    watch = _current
    if watch is None or watch.process != os.getpid():
        watch = _current = _Watch()
    watch.add(connection)
