"""The bodies."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import httpx2
from sqlalchemy import func, select

from tasks import registry
from tasks.engine.context import RunContext
from tasks.engine.effects import NotDone
from tasks.engine.models import Run
from tasks.engine.outcomes import Fail
from tasks.families.diagnostics import inputs, service

_EFFECT_SECONDS = 10.0


class Requested(Exception):
    """The failure that was asked for."""


@registry.body(inputs.ECHO)
def echo(ctx: RunContext, args: inputs.Echo) -> Any:
    return args.value


@registry.body(inputs.SLEEP)
@registry.body(inputs.LIMITED)
def sleep(ctx: RunContext, args: inputs.Sleep) -> None:
    for step in range(args.steps):
        _rest(args.seconds / args.steps)
        ctx.progress(step + 1, args.steps)


@registry.body(inputs.SPIN)
def spin(ctx: RunContext, args: inputs.Spin) -> None:
    until = time.monotonic() + args.seconds
    while time.monotonic() < until:
        pass


@registry.body(inputs.FAIL)
def fail(ctx: RunContext, args: inputs.FailInput) -> str:
    if args.times is None or ctx.attempt <= args.times:
        raise Requested(args.message) if args.retryable else Fail(args.message)
    return f"succeeded at attempt {ctx.attempt}"


@registry.body(inputs.CRASH)
def crash(ctx: RunContext, args: inputs.Crash) -> str:
    if args.times is None or ctx.attempt <= args.times:
        os.kill(os.getpid(), getattr(signal, f"SIG{args.signal}"))
        _rest(60)
    return f"survived at attempt {ctx.attempt}"


@registry.body(inputs.ALLOCATE)
def allocate(ctx: RunContext, args: inputs.Allocate) -> int:
    block = bytearray(args.megabytes * 1024 * 1024)
    block[::4096] = b"\1" * len(block[::4096])
    return len(block)


@registry.body(inputs.RUNS)
def runs(ctx: RunContext, args: registry.Input) -> int:
    return ctx.session.scalar(select(func.count()).select_from(Run)) or 0


@registry.body(inputs.EFFECT)
def effect(ctx: RunContext, args: inputs.EffectInput) -> Any:
    def call(idempotency_key: str) -> dict[str, int]:
        try:
            answer = httpx2.post(str(args.url), headers={"Idempotency-Key": idempotency_key}, timeout=_EFFECT_SECONDS)
        except httpx2.ConnectError as error:
            raise NotDone from error
        answer.raise_for_status()
        return {"status": answer.status_code}

    return ctx.effect(args.key, call)


@registry.body(inputs.WRITE)
def write(ctx: RunContext, args: inputs.Write) -> int:
    service.mark(ctx.session, args.key, args.value, ctx.run, ctx.attempt)
    _rest(args.hold_seconds)
    return service.count(ctx.session, args.key)


@registry.body(inputs.MARKS)
def marks(ctx: RunContext, args: inputs.Marks) -> int:
    return service.count(ctx.session, args.key)


@registry.body(inputs.STEPS)
def steps(ctx: RunContext, args: inputs.Steps) -> int:
    for number in range(args.count):
        ctx.step(f"step-{number}", lambda session, number=number: _step(ctx, session, args, number))  # type: ignore[misc]
        ctx.progress(number + 1, args.count)
    return args.count


def _step(ctx: RunContext, session: Any, args: inputs.Steps, number: int) -> int:
    service.mark(session, args.key, str(number), ctx.run, ctx.attempt)
    _rest(args.seconds / args.count)
    return number


def _rest(seconds: float) -> None:
    """Wait so that a soft signal ends the wait."""
    threading.Event().wait(seconds)
