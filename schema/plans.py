"""Plans, quotas, and what is used of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import strawberry

from schema import permissions
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.problems import DeletePayload, Payload
from tasks.engine import usage
from tenants import models
from tenants import quotas as service
from tenants.quotas import Quota

_LARGEST_INT = 2**31 - 1
strawberry.enum(Quota, name="QuotaName", description="RUNS and UPLOAD_BYTES are of a month, in UTC.")


@strawberry.type
class QuotaUsage:
    name: Quota
    limit: float | None = strawberry.field(description="Null: none.")
    used: float = strawberry.field(description="In the month for what is used up; now for what there is.")
    alarmed_at: datetime | None = strawberry.field(description="When 80 % were first found to be used in the month.")


@strawberry.type
class Usage:
    period: str = strawberry.field(description="The month in UTC, such as 2026-11.")
    runs: int
    run_limit: int | None
    worker_seconds: float
    backlog: int
    backlog_limit: int | None
    plan: str
    quotas: list[QuotaUsage]


@strawberry.type
class PlanQuota:
    name: Quota
    limit: float


@strawberry.type
class Plan:
    name: str
    quotas: list[PlanQuota] = strawberry.field(description="What is not here has no limit.")
    changed_at: datetime


@strawberry.input
class QuotaInput:
    name: Quota
    limit: float | None = strawberry.field(default=None, description="Null: none, also where the plan has one.")


@strawberry.type
class PlanPayload(Payload):
    plan: Plan | None = None


@strawberry.type
class Query:
    @strawberry.field(
        extensions=[permissions.TENANT_READ], description="A month that is over shows today's limits and what there is."
    )
    async def usage(
        self,
        info: Info,
        period: Annotated[
            str | None, strawberry.argument(description="A month in UTC, such as 2026-11; this one when left out.")
        ] = None,
    ) -> Usage:
        found = await info.context.data.read(usage.read, period)
        runs, backlog = found.quotas[Quota.RUNS], found.quotas[Quota.BACKLOG]
        return Usage(
            period=found.period,
            runs=_int(runs.used),
            run_limit=None if runs.limit is None else _int(runs.limit),
            worker_seconds=found.worker_seconds,
            backlog=_int(backlog.used),
            backlog_limit=None if found.backlog_limit is None else _int(found.backlog_limit),
            plan=found.plan,
            quotas=[
                QuotaUsage(name=one.quota, limit=one.limit, used=one.used, alarmed_at=one.alarmed_at)
                for one in found.quotas.values()
            ],
        )

    @strawberry.field(extensions=[permissions.OPERATORS_READ], description="For operators.")
    async def plans(self, info: Info) -> list[Plan]:
        return [_show(row) for row in await info.context.data.read(service.plans)]


@strawberry.type
class Mutation:
    @strawberry.mutation(
        extensions=[permissions.OPERATORS_WRITE, AS_PROBLEM],
        description="Makes a plan or changes one, for operators. It holds at once for the tenants that have it.",
    )
    async def set_plan(self, info: Info, name: str, quotas: list[QuotaInput]) -> PlanPayload:
        row = await info.context.data.write(service.set_plan, name, _given(quotas))
        return PlanPayload(success=True, message=f"The plan {row.name} is set.", plan=_show(row))

    @strawberry.mutation(
        extensions=[permissions.OPERATORS_WRITE, AS_PROBLEM], description="Of a plan that no tenant has, for operators."
    )
    async def remove_plan(self, info: Info, name: str) -> DeletePayload:
        await info.context.data.write(service.remove_plan, name)
        return DeletePayload(success=True, message=f"The plan {name} is gone.", deleted_id=strawberry.ID(name))

    @strawberry.mutation(
        extensions=[permissions.OPERATORS_WRITE, AS_PROBLEM],
        description="Gives a tenant a plan, and quotas of its own in place of the plan's, for operators.",
    )
    async def assign_plan(
        self,
        info: Info,
        tenant: Annotated[str, strawberry.argument(description="Its slug.")],
        plan: str,
        quotas: list[QuotaInput] | None = None,
    ) -> PlanPayload:
        await info.context.data.write(service.assign, tenant, plan, _given(quotas or []))
        return PlanPayload(success=True, message=f"{tenant} has the plan {plan}.")


def _given(given: list[QuotaInput]) -> dict[Quota, float | None]:
    return {one.name: one.limit for one in given}


def _int(number: float) -> int:
    """A number as GraphQL's Int can show it; the list of quotas has it as it is."""
    return min(int(number), _LARGEST_INT)


def _show(row: models.Plan) -> Plan:
    return Plan(
        name=row.name,
        quotas=[PlanQuota(name=Quota(name), limit=most) for name, most in row.quotas.items() if most is not None],
        changed_at=row.changed_at,
    )
