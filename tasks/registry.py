"""What tasks there are: families found by scanning their folder, and the definitions they bring."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from tenants import settings
from tenants.errors import AmbiguousTask, UnknownTask

OPERATOR_QUEUE = "operator"
LONGEST_WAIT_SECONDS = 366 * 86_400.0
"""The longest that a run waits for a time."""
_MOST_ATTEMPTS = 1000
_LARGEST_FACTOR = 100


class Input(BaseModel):
    """Base of every task's input: unknown names are refused, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


I = TypeVar("I", bound=Input)  # noqa: E741
B = TypeVar("B", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed attempt is tried again: after base × factor^(attempt − 1) seconds with jitter, at most the cap.

    Args:
        attempts: how often a run is tried in all.
        base_seconds: the first delay.
        factor: how much longer each further delay is.
        cap_seconds: the longest delay.
        max_elapsed_seconds: no attempt is scheduled later than this after the run was accepted; None: no such limit.
        by_error: other policies for classes of errors and what inherits from them, the nearest class first; None: such
            an error is never tried again.

    Raises:
        ValueError: a value makes no sense.
    """

    attempts: int = field(default_factory=lambda: settings.current().engine.max_attempts)
    base_seconds: float = 2.0
    factor: float = 2.0
    cap_seconds: float = 600.0
    max_elapsed_seconds: float | None = None
    by_error: Mapping[type[Exception], RetryPolicy | None] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _within("attempts", self.attempts, 1, _MOST_ATTEMPTS)
        _within("base_seconds", self.base_seconds, 0, LONGEST_WAIT_SECONDS)
        _within("factor", self.factor, 1, _LARGEST_FACTOR)
        _within("cap_seconds", self.cap_seconds, 0, LONGEST_WAIT_SECONDS)
        if self.max_elapsed_seconds is not None:
            _within("max_elapsed_seconds", self.max_elapsed_seconds, 0, LONGEST_WAIT_SECONDS)
        for error, policy in self.by_error.items():
            if not (isinstance(error, type) and issubclass(error, Exception)):
                raise ValueError(f"by_error: {error!r} is no class of exceptions.")
            if policy is not None and (policy.by_error or policy.max_elapsed_seconds is not None):
                raise ValueError(f"by_error: {error.__name__} can't have by_error or max_elapsed_seconds of its own.")

    @property
    def most_attempts(self) -> int:
        """How often a run is tried at most, whatever it fails with."""
        return max([self.attempts, *(policy.attempts for policy in self.by_error.values() if policy)])

    def for_error(self, error: type[BaseException]) -> RetryPolicy | None:
        """The policy for an error of this class; None: it is not tried again."""
        nearest = (ancestor for ancestor in error.__mro__ if ancestor in self.by_error)
        return next((self.by_error[ancestor] for ancestor in nearest), self)


@dataclass(frozen=True, slots=True)
class TaskDefinition(Generic[I]):
    """One task: its name, its input, and how it is run.

    Args:
        name: `<family>.<verb_phrase>`.
        input: the model its arguments are checked against.
        queue: the Celery queue its runs go to.
        priority: 0 to 9, 9 first.
        soft_seconds: after this the attempt is told to stop; the installation's own limit when left out.
        hard_seconds: after this it is killed; likewise.
        retry: when it is tried again.
        operator_only: triggered by operators only, never by a tenant.

    Raises:
        ValueError: a value makes no sense.
    """

    name: str
    input: type[I]
    description: str
    queue: str
    priority: int = 5
    soft_seconds: float = field(default_factory=lambda: settings.current().engine.soft_limit_seconds)
    hard_seconds: float = field(default_factory=lambda: settings.current().engine.hard_limit_seconds)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    operator_only: bool = False

    def __post_init__(self) -> None:
        _within(f"{self.name}: priority", self.priority, 0, 9)
        if self.operator_only is not (self.queue == OPERATOR_QUEUE):
            raise ValueError(f"{self.name}: the queue {OPERATOR_QUEUE!r} is for operators' tasks, and for all of them.")
        _within(f"{self.name}: hard_seconds", self.hard_seconds, 0, settings.LONGEST_ATTEMPT_SECONDS)
        if not 0 < self.soft_seconds < self.hard_seconds:
            raise ValueError(
                f"{self.name}: soft_seconds must be more than 0 and less than hard_seconds, {self.hard_seconds:g},"
                f" not {self.soft_seconds!r}."
            )

    @property
    def family(self) -> str:
        """The family's name."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Family:
    """A family of tasks. Its bodies stand in the module `tasks` of its package and load in workers only.

    Args:
        name: the package's name.
        description: for people who choose what to switch on.
        tasks: its definitions.
        available: whether this installation offers it at all.
        internal: on in every tenant, and triggered by services only: nobody asks for it by name.
    """

    name: str
    description: str
    tasks: tuple[TaskDefinition[Any], ...]
    available: Callable[[], bool] = lambda: True
    internal: bool = False


_BODIES: dict[str, Callable[..., Any]] = {}


@cache
def families() -> Mapping[str, Family]:
    """All families of this installation by name."""
    package = importlib.import_module("tasks.families")
    found: list[Family] = [
        importlib.import_module(f"tasks.families.{module.name}").FAMILY
        for module in pkgutil.iter_modules(package.__path__)
        if module.ispkg
    ]
    return MappingProxyType({family.name: family for family in sorted(found, key=_name) if family.available()})


def offered() -> Mapping[str, Family]:
    """The families that a tenant may switch on, by name."""
    return {name: family for name, family in families().items() if not family.internal}


def is_internal(definition: TaskDefinition[Any]) -> bool:
    """Whether only services trigger it."""
    return families()[definition.family].internal


@cache
def definitions() -> Mapping[str, TaskDefinition[Any]]:
    """All task definitions by full name."""
    return MappingProxyType({task.name: task for family in families().values() for task in family.tasks})


@cache
def queues(operator_only: bool | None = None) -> tuple[str, ...]:
    """All queues that tasks name, in alphabetical order.

    Args:
        operator_only: those alone that operators' tasks may go to, or those that tenants' may.
    """
    wanted = (task for task in definitions().values() if operator_only in {None, task.operator_only})
    return tuple(sorted({task.queue for task in wanted}))


def queue_issue(queue: str, operator_only: bool | None = None) -> str | None:
    """What is wrong with the name of a queue: it is one of those there are."""
    known = queues(operator_only)
    return None if queue in known else f"must be one of {', '.join(known)}"


def definition(name: str) -> TaskDefinition[Any]:
    """The definition with this full name.

    Raises:
        UnknownTask: there is none; its candidates are the nearest names.
    """
    found = definitions().get(name)
    if found is None:
        raise _unknown(name, definitions())
    return found


def resolve(name: str, enabled: Collection[str]) -> TaskDefinition[Any]:
    """The definition a caller means by a full or a bare name.

    Args:
        name: `sales.update_customer_segments`, or a bare name that only one of the enabled families has.
        enabled: the names of the families that the caller's tenant has switched on.

    Raises:
        UnknownTask: no enabled family has it; its candidates are the nearest names.
        AmbiguousTask: several have it; its candidates are their full names.
    """
    exact = definitions().get(name)
    if exact is not None and exact.family in enabled:
        return exact
    fitting = [full for full in _bare_names().get(name, ()) if definitions()[full].family in enabled]
    if len(fitting) > 1:
        raise AmbiguousTask(f"Several families have a task {name!r}: write {' or '.join(fitting)}.", candidates=fitting)
    if not fitting:
        raise _unknown(name, {full: task for full, task in definitions().items() if task.family in enabled})
    return definitions()[fitting[0]]


def body(definition: TaskDefinition[Any]) -> Callable[[B], B]:
    """Decorator: this function is the body of the task. It takes the run's context and the checked input."""

    def register(function: B) -> B:
        _BODIES[definition.name] = function
        return function

    return register


@cache
def bodies() -> Mapping[str, Callable[..., Any]]:
    """All task bodies by full name. Imports what the bodies need, so only workers call it.

    Raises:
        LookupError: a definition has no body.
    """
    for family in families():
        importlib.import_module(f"tasks.families.{family}.tasks")
    if missing := sorted(set(definitions()) - set(_BODIES)):
        raise LookupError(f"tasks without a body: {', '.join(missing)}")
    return MappingProxyType(_BODIES)


@cache
def _bare_names() -> Mapping[str, list[str]]:
    """The full names that a bare name may mean."""
    found: dict[str, list[str]] = {}
    for full in definitions():
        found.setdefault(full.partition(".")[2], []).append(full)
    return found


def _within(name: str, value: float, least: float, most: float) -> None:
    """Refuse what is no number in this range; not-a-number is in none."""
    if not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name} must be {least:g} to {most:g}, not {value!r}.")


def _name(family: Family) -> str:
    return family.name


def _unknown(name: str, visible: Mapping[str, TaskDefinition[Any]]) -> UnknownTask:
    bare = {full.partition(".")[2]: full for full in visible}
    close = difflib.get_close_matches(name, [*visible, *bare], n=5, cutoff=0.5)
    candidates = list(dict.fromkeys(bare.get(match, match) for match in close))
    hint = f" Did you mean {', '.join(candidates)}?" if candidates else ""
    return UnknownTask(f"There is no task {name!r} among the enabled families.{hint}", candidates=candidates)
