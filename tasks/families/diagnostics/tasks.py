"""The bodies."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import func, select

from tasks import registry
from tasks.engine.context import RunContext
from tasks.engine.effects import NotDone
from tasks.engine.models import Run
from tasks.engine.outcomes import Fail
from tasks.families.diagnostics import inputs, service
from tasks.gateways import http

_EFFECT_SECONDS = 10.0
_HEADROOM = 64 * 1024 * 1024
_leaked: list[bytearray] = []


class Requested(Exception):
    """The failure that was asked for."""


@registry.body(inputs.ECHO)
def echo(ctx: RunContext, args: inputs.Echo) -> Any:
    return args.value


@registry.body(inputs.LIMITED)
def limited(ctx: RunContext, args: inputs.Limited) -> None:
    if args.extend_seconds:
        ctx.extend(args.extend_seconds)
    if args.native:
        sum(range(int(args.seconds * 10**12)))  # No signal's handler runs before it returns.
    sleep(ctx, args)


@registry.body(inputs.SLEEP)
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
        match args.by:
            case "signal":
                os.kill(os.getpid(), getattr(signal, f"SIG{args.signal}"))
                _rest(60)
            case "segfault":
                ctypes.string_at(0)
            case "exit":
                os._exit(7)
            case "recursion":
                return crash(ctx, args)
            case "memory":
                _exhaust_memory()
    return f"survived at attempt {ctx.attempt}"


@registry.body(inputs.ALLOCATE)
def allocate(ctx: RunContext, args: inputs.Allocate) -> int:
    block = bytearray(args.megabytes * 1024 * 1024)
    block[::4096] = b"\1" * len(block[::4096])
    if args.leak:
        _leaked.append(block)
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
        return {"status": http.check_done(answer).status_code}

    def look_up(idempotency_key: str) -> dict[str, int] | None:
        answer = httpx2.get(str(args.url), headers={"Idempotency-Key": idempotency_key}, timeout=_EFFECT_SECONDS)
        return None if answer.status_code == httpx2.codes.NOT_FOUND else {"status": http.check(answer).status_code}

    return ctx.effect(
        args.key,
        call,
        look_up=look_up if args.unconfirmed == "look_up" else None,
        repeatable=args.unconfirmed == "repeat",
    )


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


def _exhaust_memory() -> None:
    """Ask for more than the process may have, under a limit of its own."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + _HEADROOM, before[1]))
    try:
        bytearray(2 * _HEADROOM)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _rest(seconds: float) -> None:
    """Wait so that a soft signal ends the wait."""
    threading.Event().wait(seconds)
