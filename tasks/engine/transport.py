"""The door for broker messages: what no grant vouches for is put aside before Celery looks at it.

Celery 5.7 trusts what it reads from a queue; one malformed element ends the worker. This transport reads the element,
checks its shape and its grant, and hands on only what the dispatcher signed.
"""

from __future__ import annotations

import binascii
import hashlib
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import orjson
import redis as redis_client
import structlog
from kombu.transport import redis
from kombu.transport.virtual import Empty
from kombu.utils.encoding import bytes_to_str

from tasks.engine import grants
from tasks.engine.grants import BadGrant, Grant
from tenants import ids, names
from tenants.settings import KeyRing

log = structlog.get_logger(__name__)
Refuse = Callable[[str, str, str], None]
"""Called with the reason, the queue and the element's SHA-256."""

_LISTS = (b"list", b"none")
_LARGEST = 64 * 1024
_TEXTS = ("lang", "task", "id")
_TIME_LIMIT_OF_THE_TASK = [None, None]
"""In place of the message's own, which nobody signed: Celery then takes the one of the registered task."""
_REPLIES = ".reply.celery.pidbox"
"""Queues on which `celery inspect` waits for its answers; no worker reads them."""


def check(ring: KeyRing, element: bytes, queue: str) -> dict[str, Any]:
    """The message behind a queue's element, its shape and grant verified.

    Raises:
        BadGrant: `size`, `json`, `shape`, `body`, `missing`, `malformed`, `signature`, `mismatch` or `expired`.
    """
    if len(element) > _LARGEST:
        raise BadGrant("size")
    try:
        payload = orjson.loads(element)
    except ValueError:
        raise BadGrant("json") from None
    headers, body = _shape(payload)
    grant = grants.read(ring, headers.get(grants.HEADER))
    _match(grant, headers, body, queue)
    if grants.expired(grant):
        raise BadGrant("expired")
    headers["timelimit"] = _TIME_LIMIT_OF_THE_TASK
    return dict(payload)


def _shape(payload: object) -> tuple[dict[str, Any], str]:
    if not isinstance(payload, dict):
        raise BadGrant("shape")
    headers, properties, body = payload.get("headers"), payload.get("properties"), payload.get("body")
    if not (isinstance(headers, dict) and isinstance(properties, dict) and isinstance(body, str)):
        raise BadGrant("shape")
    info, limits = properties.get("delivery_info"), headers.get("timelimit")
    if (
        any(not isinstance(headers.get(name), str) for name in _TEXTS)
        or payload.get("content-type") != "application/json"
        or payload.get("content-encoding") != "utf-8"
        or properties.get("body_encoding") != "base64"
        or not isinstance(properties.get("delivery_tag"), str)
        or not (isinstance(info, dict) and info.get("exchange") == "" and isinstance(info.get("routing_key"), str))
        or not (isinstance(limits, list) and len(limits) == 2 and isinstance(limits[0], int | float))
        or limits[1] is not None
        or not isinstance(headers.get("retries"), int)
        or any(headers.get(name) is not None for name in ("eta", "expires", "group", "shadow", "parent_id"))
        or headers.get("ignore_result") is not True
    ):
        raise BadGrant("shape")
    try:
        args = orjson.loads(b64decode(body, validate=True))
    except (binascii.Error, ValueError):
        raise BadGrant("body") from None
    if not (isinstance(args, list) and len(args) == 3 and isinstance(args[0], list)):
        raise BadGrant("body")
    return headers, body


def _match(grant: Grant, headers: dict[str, Any], body: str, queue: str) -> None:
    """Every field that Celery acts on is the one that was signed."""
    if (
        headers["id"] != ids.show("run", grant.run)
        or headers["task"] != grant.task
        or queue != grant.queue
        or grants.digest(body) != grant.body
        or headers.get("root_id") != headers["id"]
    ):
        raise BadGrant("mismatch")


def arm(ring: KeyRing, refuse: Refuse) -> None:
    """Give this process the keys it verifies with, and tell it what to do with what it refuses."""
    Channel.ring = ring
    Channel.refuse = staticmethod(refuse)


class Channel(redis.Channel):  # type: ignore[misc]
    """kombu's Redis channel with a guard at its one reading place."""

    ring: ClassVar[KeyRing] = {}
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
            return check(self.ring, element, queue)
        except BadGrant as error:
            type(self).refuse(error.reason, queue, hashlib.sha256(element).hexdigest())
            return None

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
