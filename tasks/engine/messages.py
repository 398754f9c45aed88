"""Task messages: a release as Celery reads it, made by the dispatcher and made again by the worker from its grant.

Celery 5.7 trusts what it reads: one malformed field ends the worker. So nothing of a message reaches it but what was
signed; all else is the same in every message.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from tasks.engine import grants
from tasks.engine.grants import BadGrant, Grant
from tenants import ids
from tenants.settings import KeyRing

_LARGEST = 64 * 1024
_CONSTANTS: dict[str, Any] = {
    "lang": "py",
    "parent_id": None,
    "group": None,
    "shadow": None,
    "eta": None,
    "expires": None,
    "retries": 0,
    "timelimit": [None, None],
    "argsrepr": "(redacted)",
    "kwargsrepr": "{}",
    "origin": "dispatcher",
    "ignore_result": True,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}
"""Headers that are the same in every message."""
_MARKS = {"redelivered"}
"""Headers that kombu adds when it puts a message back."""


@dataclass(frozen=True, slots=True)
class Release:
    """A run that has just been released, as the database returned it."""

    tenant: UUID
    run: UUID
    task: str
    queue: str
    fence: int


def encode(release: Release, ring: KeyRing, expires: float) -> bytes:
    """A release as a message, signed, as kombu puts it into a Redis list.

    Args:
        expires: until when it may wait in its queue, in seconds of Unix time by the database's clock.
    """
    body = _body(release.run)
    grant = Grant(
        tenant=release.tenant,
        run=release.run,
        fence=release.fence,
        task=release.task,
        queue=release.queue,
        body=grants.digest(body),
        expires=int(expires),
    )
    return orjson.dumps(_message(grant, grants.sign(ring, grant)))


def decode(ring: KeyRing, element: bytes, queue: str, skew: float = 0.0) -> dict[str, Any]:
    """The message that the dispatcher signed, from a queue's element.

    Args:
        skew: seconds by which the database's clock is ahead of this machine's.

    Raises:
        BadGrant: `size`, `json`, `shape`, `missing`, `malformed`, `signature`, `mismatch` or `expired`.
    """
    if len(element) > _LARGEST:
        raise BadGrant("size")
    try:
        found = orjson.loads(element)
    except ValueError:
        raise BadGrant("json") from None
    headers, _, _ = parts(found)
    text = headers.get(grants.HEADER)
    grant = grants.read(ring, text)
    message = _message(grant, str(text))
    if grant.queue != queue or found["body"] != message["body"] or grants.digest(message["body"]) != grant.body:
        raise BadGrant("mismatch")
    if {name: value for name, value in headers.items() if name not in _MARKS} != message["headers"]:
        raise BadGrant("mismatch")
    if grants.expired(grant, skew):
        raise BadGrant("expired")
    return message


def parts(message: object) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Headers, properties and body of what kombu can make a message of.

    Raises:
        BadGrant: `shape`: kombu could not.
    """
    if not isinstance(message, dict):
        raise BadGrant("shape")
    headers, properties, body = message.get("headers"), message.get("properties"), message.get("body")
    if not (isinstance(headers, dict) and isinstance(properties, dict) and isinstance(body, str)):
        raise BadGrant("shape")
    info = properties.get("delivery_info")
    if (
        message.get("content-type") != "application/json"
        or message.get("content-encoding") != "utf-8"
        or properties.get("body_encoding") != "base64"
        or not isinstance(properties.get("delivery_tag"), str)
        or not isinstance(info, dict)
    ):
        raise BadGrant("shape")
    try:
        base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise BadGrant("shape") from None
    return headers, properties, body


def _body(run: UUID) -> str:
    """It names the run and nothing else: arguments stay in the database."""
    options = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return base64.b64encode(orjson.dumps([[ids.show("run", run)], {}, options])).decode()


def _message(grant: Grant, text: str) -> dict[str, Any]:
    """A message of protocol 2 that says what the grant says.

    Source: Celery's documentation, "Message Protocol", version 2.
    """
    run_id = ids.show("run", grant.run)
    return {
        "body": _body(grant.run),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {**_CONSTANTS, "task": grant.task, "id": run_id, "root_id": run_id, grants.HEADER: text},
        "properties": {
            "correlation_id": run_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": grant.queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
