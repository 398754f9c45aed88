"""What the diagnostic tasks take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, HttpUrl, JsonValue

from tasks.registry import Input, RetryPolicy, TaskDefinition

QUEUE = "diagnostics"
_QUICKLY = RetryPolicy(attempts=4, base_seconds=0.2, cap_seconds=5)


class Echo(Input):
    value: JsonValue = None


class Sleep(Input):
    seconds: float = Field(ge=0, le=3600)
    steps: int = Field(1, ge=1, le=10_000)


class Limited(Sleep):
    extend_seconds: float = Field(0, ge=0, le=3600)
    native: bool = False


class Spin(Input):
    seconds: float = Field(ge=0, le=3600)


class FailInput(Input):
    message: str = Field(max_length=2000)
    retryable: bool = True
    times: int | None = Field(None, ge=0)


class Crash(Input):
    by: Literal["signal", "segfault", "exit", "recursion", "memory"] = "signal"
    signal: str = Field("KILL", pattern="^[A-Z0-9]{2,10}$")
    times: int | None = Field(None, ge=0)


class Allocate(Input):
    megabytes: int = Field(ge=0, le=65_536)
    leak: bool = False


class EffectInput(Input):
    key: str = Field(min_length=1, max_length=200)
    url: HttpUrl
    unconfirmed: Literal["fail", "repeat", "look_up"] = "fail"


class Write(Input):
    key: str = Field(min_length=1, max_length=200)
    value: str = Field(max_length=2000)
    hold_seconds: float = Field(0, ge=0, le=3600)


class Marks(Input):
    key: str = Field(min_length=1, max_length=200)


class Steps(Input):
    key: str = Field(min_length=1, max_length=200)
    count: int = Field(ge=1, le=10_000)
    seconds: float = Field(0, ge=0, le=3600)


def _define(
    name: str, input: type[Input], description: str, soft: float = 3600, hard: float = 3660
) -> TaskDefinition[Input]:
    return TaskDefinition(
        f"diagnostics.{name}", input, description, QUEUE, soft_seconds=soft, hard_seconds=hard, retry=_QUICKLY
    )


ECHO = _define("echo", Echo, "Return the value.")
SLEEP = _define("sleep", Sleep, "Sleep, in steps with progress.")
SPIN = _define("spin", Spin, "Use the processor.")
FAIL = _define("fail", FailInput, "Fail, always or the first attempts.")
CRASH = _define("crash", Crash, "End the worker's process, or nearly, always or at the first attempts.")
ALLOCATE = _define("allocate", Allocate, "Take memory, and keep it if told to leak.")
RUNS = _define("runs", Input, "Count the runs that can be seen.")
EFFECT = _define("effect", EffectInput, "Call a URL once, through the effect ledger.")
WRITE = _define("write", Write, "Append a mark in the run's transaction, after holding it open.")
MARKS = _define("marks", Marks, "Count the marks under a key.")
STEPS = _define("steps", Steps, "Append marks in named steps.")
LIMITED = _define(
    "limited",
    Limited,
    "Sleep, or stay where no signal reaches, under a soft limit of 1 s and a hard one of 2 s.",
    soft=1,
    hard=2,
)
TASKS = (ECHO, SLEEP, SPIN, FAIL, CRASH, ALLOCATE, RUNS, EFFECT, WRITE, MARKS, STEPS, LIMITED)
