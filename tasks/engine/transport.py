"""The door for broker messages: what no grant vouches for is put aside before Celery looks at it.

Celery 5.7 trusts what it reads; one malformed element ends the worker. This transport hands on only the task messages
that the dispatcher signed, and only those control messages that kombu can read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import orjson
import redis as redis_client
import structlog
from kombu.transport import redis
from kombu.transport.virtual import Empty
from kombu.utils.encoding import bytes_to_str

from tasks import registry
from tasks.engine import messages
from tasks.engine.grants import BadGrant
from tenants import names
from tenants.settings import KeyRing

log = structlog.get_logger(__name__)
Refuse = Callable[[str, str, str], None]
"""Called with the reason, the queue and the element's SHA-256."""

_LISTS = (b"list", b"none")
_REPLIES = ".reply.celery.pidbox"
"""Queues on which `celery inspect` waits for its answers; no worker reads them."""


def arm(ring: KeyRing, refuse: Refuse) -> None:
    """Give this process the keys it verifies with, and tell it what to do with what it refuses."""
    Channel.ring = ring
    Channel.refuse = staticmethod(refuse)


def set_skew(seconds: float) -> None:
    """Tell this process by how much the database's clock is ahead of its own: grants end by the database's."""
    Channel.skew = seconds


class Channel(redis.Channel):  # type: ignore[misc]
    """kombu's Redis channel with a guard at its reading places."""

    do_restore = False
    """What a worker has taken and not begun when it ends is released again: nothing of it is kept in Redis."""
    ring: ClassVar[KeyRing] = {}
    skew: ClassVar[float] = 0.0
    refuse: ClassVar[Refuse] = staticmethod(lambda reason, queue, digest: None)

    def _brpop_read(self, **options: Any) -> bool:
        try:
            try:
                answer = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            except redis_client.ResponseError as error:
                if not self._put_aside(self.active_queues):
                    raise redis_client.ConnectionError(f"the broker refuses to be read: {error}") from error
                raise Empty() from None
            if not answer:
                raise Empty()
            destination, element = answer
            queue = bytes_to_str(destination).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            if message := self._admit(element, queue):
                self.connection._deliver(message, queue)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _get(self, queue: str) -> dict[str, Any]:
        with self.conn_or_acquire() as client:
            for priority in self.priority_steps:
                element = client.rpop(self._q_for_pri(queue, priority))
                if element and (message := self._admit(element, queue)):
                    return message
        raise Empty()

    def _admit(self, element: bytes, queue: str) -> dict[str, Any] | None:
        if queue.endswith(_REPLIES):
            return dict(orjson.loads(element))
        try:
            message = messages.decode(self.ring, element, queue, type(self).skew)
        except BadGrant as error:
            type(self).refuse(error.reason, queue, hashlib.sha256(element).hexdigest())
            return None
        if (task := message["headers"]["task"]) not in registry.definitions():
            log.error("task_unknown", task=task, hint="This worker's code has no such task. The run waits for one.")
            type(self).refuse("unknown", queue, hashlib.sha256(element).hexdigest())
            return None
        return message

    def _deliver_fanout_message(self, message: object, exchange: str) -> bool:
        """Control messages are not signed; what kombu could not read would end the worker."""
        try:
            messages.parts(message)
        except BadGrant as error:
            type(self).refuse(error.reason, exchange, "")
            return True
        return bool(super()._deliver_fanout_message(message, exchange))

    def _size(self, queue: str) -> int:
        try:
            return int(super()._size(queue))
        except redis_client.ResponseError:
            self._put_aside([queue])
            return int(super()._size(queue))

    def _put_aside(self, queues: Iterable[str]) -> bool:
        """Move keys out of the way that stand in a queue's place and are no lists; whether there were any."""
        found = False
        with self.conn_or_acquire() as client:
            for key in (self._q_for_pri(queue, priority) for queue in queues for priority in self.priority_steps):
                if client.type(key) not in _LISTS:
                    found = True
                    client.rename(key, names.put_aside(key))
                    log.error("queue_was_no_list", queue=key, put_aside=names.put_aside(key))
                    type(self).refuse("type", key, "")
        return found

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """A client; on a channel whose connection has been collected an error that kombu knows how to survive."""
        if client is None and (self.connection is None or self.connection.client is None):
            raise redis_client.ConnectionError("the connection is closed")
        with super().conn_or_acquire(client) as acquired:
            yield acquired


class Transport(redis.Transport):  # type: ignore[misc]
    """kombu's Redis transport with the guarded channel."""

    Channel = Channel
