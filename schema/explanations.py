"""Why a run waits."""

from __future__ import annotations

from datetime import datetime

import strawberry

from schema import nodes, permissions
from schema import runs as shown
from schema.context import Info
from schema.runs import Run
from tasks.engine import explain
from tasks.engine.explain import WaitReason

strawberry.enum(WaitReason)


@strawberry.type
class RunExplanation:
    run: Run
    reason: WaitReason
    message: str
    limit_name: str | None
    position: int | None = strawberry.field(description="Among the tenant's own runs, from 1.")
    expected_start: datetime | None = strawberry.field(description="As far as it can be told.")


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.RUNS_READ])
    async def explain_run(self, info: Info, id: strawberry.ID) -> RunExplanation | None:
        found = await nodes.find(info, "run", id, explain.explain)
        if found is None:
            return None
        return RunExplanation(
            run=shown.show(found.run),
            reason=found.reason,
            message=found.message,
            limit_name=found.limit_name,
            position=found.position,
            expected_start=found.expected_start,
        )
