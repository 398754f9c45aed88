"""The mutations of runs: trigger, cancel, retry."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, cast

import strawberry

from schema import permissions
from schema import runs as shown
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.problems import Payload
from schema.runs import Run
from schema.scalars import JSON
from tasks.engine import models, runs
from tasks.engine.runs import TriggerRequest
from tenants import ids
from tenants.errors import InvalidInput, Issue


@strawberry.type
class TriggerBackgroundTaskPayload(Payload):
    success: bool = strawberry.field(description="Accepted.")
    message: str = strawberry.field(description="For people.")
    task_id: strawberry.ID | None = None
    row: strawberry.Private[models.Run | None] = None
    replayed: bool = strawberry.field(default=False, description="An idempotency key returned an earlier run.")

    @strawberry.field
    def run(self) -> Run | None:
        return None if self.row is None else shown.show(self.row)


@strawberry.input
class TriggerInput:
    task_name: str
    args: JSON | None = None
    idempotency_key: str | None = None
    priority: int | None = None
    delay_seconds: float | None = None
    eta: datetime | None = None
    concurrency_key: str | None = None
    queue: str | None = None


@strawberry.type
class TriggerBackgroundTasksPayload(Payload):
    runs: list[Run] = strawberry.field(default_factory=list)


@strawberry.type
class RunPayload(Payload):
    run: Run | None = None


_TaskName = Annotated[
    str,
    strawberry.argument(description="<family>.<task>, or a bare name that is unambiguous among the enabled families."),
]
_Args = Annotated[JSON | None, strawberry.argument(description="Checked against the task's input; {} when left out.")]
_Key = Annotated[str | None, strawberry.argument(description="1 to 255 characters, kept 24 h.")]
_Priority = Annotated[
    int | None, strawberry.argument(description="0-9, 9 = highest; the task's own default when left out.")
]


@strawberry.type
class Mutation:
    @strawberry.mutation(extensions=[permissions.TASKS_TRIGGER, AS_PROBLEM])
    async def trigger_background_task(
        self,
        info: Info,
        task_name: _TaskName,
        args: _Args = None,
        idempotency_key: _Key = None,
        priority: _Priority = None,
        delay_seconds: float | None = None,
        eta: datetime | None = None,
        concurrency_key: str | None = None,
        queue: str | None = None,
    ) -> TriggerBackgroundTaskPayload:
        request = TriggerRequest(
            task_name, _args(args), idempotency_key, priority, delay_seconds, eta, concurrency_key, queue
        )
        return await accept(info, request)

    @strawberry.mutation(
        extensions=[permissions.TASKS_TRIGGER, AS_PROBLEM],
        description="At most 1,000 at once, in one transaction: all are accepted or none is.",
    )
    async def trigger_background_tasks(self, info: Info, inputs: list[TriggerInput]) -> TriggerBackgroundTasksPayload:
        accepted = await info.context.data.write(
            runs.trigger_many, [_request(index, one) for index, one in enumerate(inputs)]
        )
        return TriggerBackgroundTasksPayload(
            success=True,
            message=f"Accepted {len(accepted)} runs.",
            runs=[shown.show(one.run) for one in accepted],
        )

    @strawberry.mutation(extensions=[permissions.RUNS_WRITE, AS_PROBLEM])
    async def cancel_run(self, info: Info, id: strawberry.ID) -> RunPayload:
        run = shown.show(await info.context.data.write(runs.cancel, ids.read("run", id)))
        told = "is cancelled" if run.finished_at else "has been told to stop"
        return RunPayload(success=True, message=f"{run.task_name} {told}.", run=run)

    @strawberry.mutation(
        extensions=[permissions.RUNS_WRITE, AS_PROBLEM], description="A new run that names its origin."
    )
    async def retry_run(
        self,
        info: Info,
        id: strawberry.ID,
        args: JSON | None = None,
        repeat_effects: Annotated[
            bool,
            strawberry.argument(
                description="Do again outside what was done. Else a run with the same args takes the answers there are."
            ),
        ] = False,
    ) -> RunPayload:
        given = None if args is None else _args(args)
        run = shown.show(
            await info.context.data.write(runs.retry, ids.read("run", id), given, repeat_effects=repeat_effects)
        )
        return RunPayload(success=True, message=f"Accepted as {run.id}.", run=run)


async def accept(info: Info, request: TriggerRequest) -> TriggerBackgroundTaskPayload:
    """Trigger a run, and say what became of it; for families' typed triggers too."""
    accepted = await info.context.data.write(runs.trigger, request)
    run_id = ids.show("run", accepted.run.id)
    return TriggerBackgroundTaskPayload(
        success=True,
        task_id=strawberry.ID(run_id),
        message=f"Accepted before as {run_id}." if accepted.replayed else f"Accepted as {run_id}.",
        row=accepted.run,
        replayed=accepted.replayed,
    )


def _request(index: int, given: TriggerInput) -> TriggerRequest:
    return TriggerRequest(
        given.task_name,
        _args(given.args, str(index)),
        given.idempotency_key,
        given.priority,
        given.delay_seconds,
        given.eta,
        given.concurrency_key,
        given.queue,
    )


def _args(given: JSON | None, *path: str) -> Mapping[str, object]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InvalidInput(issues=[Issue((*path, "args"), "must be an object")])
    return cast("Mapping[str, object]", given)
