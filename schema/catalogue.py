"""What can be triggered: families and their tasks."""

from __future__ import annotations

from functools import cache
from typing import Any

import strawberry

from schema import later, permissions
from schema.context import Info
from schema.nodes import Node
from schema.problems import Payload
from schema.scalars import JSON
from tasks import registry
from tasks.engine import switches
from tenants.context import ActorKind, Principal
from tenants.errors import AmbiguousTask, UnknownTask


@strawberry.type
class TaskDefinition(Node):
    name: str = strawberry.field(description="<family>.<verb_phrase>")
    family: str
    description: str
    queue: str
    priority: int
    input_schema: JSON = strawberry.field(description="JSON Schema of args.")
    max_attempts: int
    soft_time_limit_seconds: float
    time_limit_seconds: float
    allowed: bool = strawberry.field(description="Whether this caller may trigger it.")


@strawberry.type
class FamilyStatus(Node):
    name: str
    description: str
    enabled: bool
    tasks: list[TaskDefinition]


@strawberry.type
class FamilyPayload(Payload):
    family: FamilyStatus | None = None


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.SIGNED_IN], description="Of the families that are enabled here.")
    async def tasks(self, info: Info, family: str | None = None) -> list[TaskDefinition]:
        enabled = await info.context.data.read(switches.enabled)
        return [
            show_task(task, info.context.caller)
            for task in registry.definitions().values()
            if task.family in enabled and family in {None, task.family}
        ]

    @strawberry.field(extensions=[permissions.SIGNED_IN])
    async def task(self, info: Info, name: str) -> TaskDefinition | None:
        return await find_task(info, name)

    @strawberry.field(extensions=[permissions.SIGNED_IN])
    async def families(self, info: Info) -> list[FamilyStatus]:
        enabled = await info.context.data.read(switches.enabled)
        return [show_family(family, family.name in enabled, info) for family in registry.offered().values()]


@strawberry.type
class Mutation:
    enable_family: FamilyPayload = later.field(permissions.TENANT_WRITE, "Installs its default schedules.", name=str)
    disable_family: FamilyPayload = later.field(permissions.TENANT_WRITE, name=str)


async def find_task(info: Info, name: str) -> TaskDefinition | None:
    """The task that a full or a bare name means to this caller; None where it means none or several."""
    try:
        found = registry.resolve(name, await info.context.data.read(switches.enabled))
    except (UnknownTask, AmbiguousTask):
        return None
    return show_task(found, info.context.caller)


async def find_family(info: Info, name: str) -> FamilyStatus | None:
    """The family with this name, or None."""
    family = registry.offered().get(name)
    if family is None:
        return None
    return show_family(family, name in await info.context.data.read(switches.enabled), info)


def show_task(task: registry.TaskDefinition[Any], caller: Principal) -> TaskDefinition:
    """A definition as this caller sees it."""
    return TaskDefinition(
        id=strawberry.ID(f"task_{task.name}"),
        name=task.name,
        family=task.family,
        description=task.description,
        queue=task.queue,
        priority=task.priority,
        input_schema=_input_schema(task.name),
        max_attempts=task.retry.most_attempts,
        soft_time_limit_seconds=task.soft_seconds,
        time_limit_seconds=task.hard_seconds,
        allowed=caller.may_trigger(task.name) and (not task.operator_only or caller.kind is ActorKind.OPERATOR),
    )


def show_family(family: registry.Family, enabled: bool, info: Info) -> FamilyStatus:
    """A family as this caller sees it."""
    return FamilyStatus(
        id=strawberry.ID(f"fam_{family.name}"),
        name=family.name,
        description=family.description,
        enabled=enabled,
        tasks=[show_task(task, info.context.caller) for task in family.tasks],
    )


@cache
def _input_schema(name: str) -> JSON:
    return JSON(registry.definition(name).input.model_json_schema())
