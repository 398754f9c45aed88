"""Whether this process lives, and whether the installation can do its work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.answers import Json
from api.auth import Authenticator
from api.shared import Shared
from tasks.engine import figures
from tasks.engine.models import DispatcherLeader, Worker
from tenants import db

_SECONDS = 2.0
_ONE = select(1)
_LEADER = select(DispatcherLeader.holder).where(figures.leading())


@dataclass(frozen=True, slots=True)
class _Finding:
    """What a check found: nothing is wrong, or one sentence on how to mend it."""

    problem: str | None = None


async def live(_: Request) -> Response:
    """`GET /health/live`: this process answers."""
    return Json({"status": "ok"})


class Readiness:
    """`GET /health/ready`: one finding for each thing that runs depend on; 503 when one of them is missing.

    Nobody is told to wait here, so all who ask within a second are told the same.

    Args:
        authenticator: the way to the database without a caller.
        client: Redis.
    """

    def __init__(self, authenticator: Authenticator, client: redis.asyncio.Redis) -> None:
        self._authenticator = authenticator
        self._client = client
        self._found = Shared(self._check)

    async def show(self, _: Request) -> Response:
        ready, found = await self._found.get()
        return Json({"status": "ok" if ready else "unavailable", "checks": found}, 200 if ready else 503)

    async def _check(self) -> tuple[bool, dict[str, dict[str, Any]]]:
        checks: dict[str, Callable[[], Awaitable[_Finding]]] = {
            "postgres": self._postgres,
            "redis": self._redis,
            "dispatcher": self._dispatcher,
            "workers": self._workers,
        }
        findings = await asyncio.gather(*(_bounded(check) for check in checks.values()))
        return all(finding.problem is None for finding in findings), {
            name: {"ok": finding.problem is None} | ({} if finding.problem is None else {"problem": finding.problem})
            for name, finding in zip(checks, findings, strict=True)
        }

    async def _postgres(self) -> _Finding:
        await self._authenticator.look_up(_one)
        return _Finding()

    async def _redis(self) -> _Finding:
        await self._client.ping()
        return _Finding()

    async def _dispatcher(self) -> _Finding:
        if await self._authenticator.look_up(_is_led):
            return _Finding()
        return _Finding("No dispatcher leads: start `celery -A tasks.worker beat`.")

    async def _workers(self) -> _Finding:
        if await self._authenticator.look_up(_has_workers):
            return _Finding()
        return _Finding("No worker has reported: start `celery -A tasks.worker worker`.")


async def _bounded(check: Callable[[], Awaitable[_Finding]]) -> _Finding:
    try:
        async with asyncio.timeout(_SECONDS):
            return await check()
    except Exception as error:  # Whatever it is, the thing can't be used.
        return _Finding(f"It does not answer ({type(error).__name__}).")


@db.single_statement
def _one(session: Session) -> None:
    db.fetch(session, _ONE)


@db.single_statement
def _is_led(session: Session) -> bool:
    return bool(db.fetch(session, _LEADER))


@db.single_statement
def _has_workers(session: Session) -> bool:
    return bool(db.fetch(session, select(Worker.name).where(figures.alive()).limit(1)))
