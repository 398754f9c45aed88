"""The test as dispatcher: it leads, releases runs itself, and holds their messages to copy, keep back and falsify."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import orjson
import redis
from pydantic import SecretStr

from tasks.engine import grants, messages
from tasks.engine.grants import Grant
from tasks.engine.ledger import SHARD, Ledger
from tasks.engine.messages import Release
from tenants import ids
from tests.support.installations import Installation

QUEUE = "diagnostics"
Payload = dict[str, Any]


class Pen:
    """Signs messages as the dispatcher does."""

    def __init__(self, installation: Installation) -> None:
        self._ring = installation.settings.engine.grant_keys

    def message(self, release: Release, grant_seconds: float = 3600) -> bytes:
        """The message that the dispatcher would send; its grant outlasts the test, however slow the machine."""
        return messages.encode(release, self._ring, time.time() + grant_seconds)


class StandIn(Pen):
    """Leads in place of a dispatcher, and only when told."""

    def __init__(self, installation: Installation) -> None:
        super().__init__(installation)
        self._installation = installation
        settings = installation.settings
        self._ledger = Ledger(installation.addresses.system, settings.engine, application="tests")
        ((self._epoch,),) = self._ledger.call("SELECT take_lead(%s, 'tests', %s)", SHARD, timedelta(hours=1))

    def release(self, run: UUID) -> Release:
        """Release one waiting run without sending its message."""
        ((tenant, task, queue, fence),) = self._ledger.call(
            "SELECT tenant_id, task, queue, fence FROM release_runs(%s, %s, %s, %s)",
            SHARD,
            self._epoch,
            [self._installation.accepted[run]],
            [run],
        )
        return Release(tenant, run, task, queue, fence)

    def send(self, *elements: bytes, queue: str = QUEUE) -> None:
        """Put elements into a queue, the first to be read first."""
        with closing(redis.Redis.from_url(self._installation.redis_url)) as client:
            for element in elements:
                client.lpush(queue, element)

    def refused(self) -> dict[str, int]:
        """How many messages have been refused or dropped, by reason."""
        return dict(self._installation.rows("SELECT reason, total FROM refused_counts"))

    def resign(self) -> None:
        """Let a dispatcher lead."""
        self._ledger.call("SELECT resign(%s, 'tests')", SHARD)
        self._ledger.close()


@dataclass(frozen=True, slots=True)
class Bad:
    """An element that must be refused, and why."""

    name: str
    element: bytes
    reason: str
    queue: str = QUEUE


def falsified(pen: Pen, release: Release, other_tenant: UUID, other_queue: str) -> list[Bad]:
    """Messages for a run that is really released, each wrong in one way, and elements that are no messages at all."""
    good: Payload = orjson.loads(pen.message(release))
    return [*_no_messages(), *_ill_shaped(good), *_forged(pen, release, good, other_tenant, other_queue)]


def _no_messages() -> Iterable[Bad]:
    yield Bad("no JSON", b"not json", "json")
    yield Bad("empty", b"", "json")
    yield Bad("bad UTF-8", b'{"body": "\xff\xfe"}', "json")
    yield Bad("not a number", b'{"body": NaN}', "json")
    yield Bad("nested", b"[" * 30_000 + b"]" * 30_000, "json")
    yield Bad("an array", b"[1, 2, 3]", "shape")
    yield Bad("null", b"null", "shape")
    yield Bad("a number", b"7", "shape")
    yield Bad("huge", b'{"body": "' + b"A" * 5_000_000 + b'"}', "size")
    arguments = base64.b64encode(orjson.dumps({"task": "diagnostics.write", "id": "x", "args": [], "kwargs": {}}))
    yield Bad(
        "protocol 1",
        orjson.dumps(
            {
                "body": arguments.decode(),
                "content-type": "application/json",
                "content-encoding": "utf-8",
                "headers": {},
                "properties": {
                    "body_encoding": "base64",
                    "delivery_tag": "t",
                    "delivery_info": {"exchange": "", "routing_key": QUEUE},
                },
            }
        ),
        "missing",
    )


def _ill_shaped(good: Payload) -> Iterable[Bad]:
    for part in ("headers", "properties", "body", "content-type", "content-encoding"):
        yield Bad(f"without {part}", orjson.dumps({name: good[name] for name in good if name != part}), "shape")
    yield Bad("headers a list", orjson.dumps({**good, "headers": []}), "shape")
    yield Bad("pickled", orjson.dumps({**good, "content-type": "application/x-python-serialize"}), "shape")
    for name, value in (
        ("timelimit", "x"),
        ("timelimit", [None]),
        ("id", {}),
        ("id", None),
        ("task", 7),
        ("retries", "x"),
        ("eta", "2026-01-01T00:00:00"),
        ("expires", 1),
        ("group", "g"),
        ("ignore_result", False),
        ("stamped_headers", 5),
    ):
        yield Bad(f"{name} {value!r}", _with(good, "headers", name, value), "mismatch")
    yield Bad("no delivery tag", _with(good, "properties", "delivery_tag", None), "shape")
    yield Bad("no delivery info", _with(good, "properties", "delivery_info", None), "shape")
    yield Bad("bad base64", orjson.dumps({**good, "body": "%%%"}), "shape")
    yield Bad("a body that is no JSON", orjson.dumps({**good, "body": "AAAA"}), "mismatch")
    yield Bad("a scalar body", orjson.dumps({**good, "body": base64.b64encode(b"7").decode()}), "mismatch")


def _forged(pen: Pen, release: Release, good: Payload, other_tenant: UUID, other_queue: str) -> Iterable[Bad]:
    def with_header(name: str, value: object) -> bytes:
        return _with(good, "headers", name, value)

    grant: str = good["headers"][grants.HEADER]
    text, _, seal = grant.rpartition("|")
    body = base64.b64encode(orjson.dumps([[ids.show("run", ids.new())], {}, {}])).decode()
    yield Bad("another body", orjson.dumps({**good, "body": body}), "mismatch")
    yield Bad("another task", with_header("task", "diagnostics.crash"), "mismatch")
    yield Bad("another id", with_header("id", ids.show("run", ids.new())), "mismatch")
    yield Bad("another queue", orjson.dumps(good), "mismatch", other_queue)
    yield Bad("no grant", with_header(grants.HEADER, None), "missing")
    yield Bad("a number for a grant", with_header(grants.HEADER, 7), "malformed")
    yield Bad("a long grant", with_header(grants.HEADER, grant + "A" * 1000), "malformed")
    another_tenants = grant.replace(release.tenant.hex, other_tenant.hex)
    yield Bad("another tenant", with_header(grants.HEADER, another_tenants), "signature")
    yield Bad("another fence", with_header(grants.HEADER, grant.replace(f"|{release.fence}|", "|9|")), "signature")
    yield Bad("one letter of the seal", with_header(grants.HEADER, grant[:-1] + chr(ord(grant[-1]) ^ 1)), "signature")
    yield Bad("no seal", with_header(grants.HEADER, text), "signature")
    yield Bad("an unknown key", with_header(grants.HEADER, f"{text}|k0{seal[2:]}"), "signature")
    old = {"k0": SecretStr("a-key-that-is-no-longer-in-the-ring")}
    made = Grant(
        release.tenant, release.run, release.fence, release.task, release.queue, grants.digest(good["body"]), 2**40
    )
    yield Bad("an old key", with_header(grants.HEADER, grants.sign(old, made)), "signature")
    forged_under_a_known_id = {"k1": SecretStr("somebody-elses-key-under-a-known-id")}
    yield Bad("another key", with_header(grants.HEADER, grants.sign(forged_under_a_known_id, made)), "signature")
    yield Bad("expired", pen.message(release, grant_seconds=-time.time()), "expired")
    yield Bad("an older fence", pen.message(replace(release, fence=release.fence - 1)), "stale")
    yield Bad("signed for another tenant", pen.message(replace(release, tenant=other_tenant)), "stale")
    yield Bad("signed for another task", pen.message(replace(release, task="diagnostics.echo")), "stale")


def _with(good: Payload, part: str, name: str, value: object) -> bytes:
    return orjson.dumps({**good, part: {**good[part], name: value}})
