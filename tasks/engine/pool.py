"""What Celery's prefork pool lacks: word of a child's end at once, and results that outlive a lost broker.

All of it stands on the pool's internals; the tests that kill children and brokers show it when they change.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from typing import Any

_REAPABLE_SECONDS = 1.0


def await_deaths(pool: Any) -> None:
    """A dying child closes its pipe before it can be reaped: a pool that looks too early looks again after 5 s.

    Args:
        pool: Celery's asynchronous pool.
    """
    before = pool._event_process_exit

    def event_process_exit(hub: Any, process: Any) -> None:
        _await_end(process.pid)
        before(hub, process)

    pool._event_process_exit = event_process_exit


def tell_of_deaths(pool: Any, tell: Callable[[int, int | None], None]) -> None:
    """Call back with a child's process id and exit code as soon as the event loop has seen its end.

    The pool sets its own handler at every connection to the broker: to be called after that.
    """
    before = pool.on_process_down

    def on_process_down(process: Any) -> None:
        tell(process.pid, process.exitcode)
        before(process)

    pool.on_process_down = on_process_down


def finish_reading(pool: Any, hub: Any) -> None:
    """Read to its end what a child was saying before the event loop is reset.

    When the broker is lost, Celery resets the loop, and with it the reader of a result of which the first part was
    read. The next reader would take the rest for a message of its own, and that ends the worker.
    """
    before = hub.reset

    def reset() -> None:
        try:
            for descriptor, process in list(pool._fileno_to_outq.items()):
                if pool._result_handler._finish_partial_read(descriptor, process):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
        finally:
            before()

    hub.reset = reset


def _await_end(pid: int) -> None:
    """Wait until a child that is about to end can be reaped, for a second at most."""
    if not hasattr(os, "pidfd_open"):
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([descriptor], [], [], _REAPABLE_SECONDS)
    finally:
        os.close(descriptor)
