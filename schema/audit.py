"""The audit log: who did what in the tenant."""

from __future__ import annotations

from datetime import datetime

import strawberry

from schema import nodes, paging, permissions
from schema.context import Info
from schema.nodes import Node
from schema.paging import Connection
from schema.scalars import JSON
from tenants import audit, ids, models


@strawberry.type
class AuditEntry(Node):
    at: datetime
    actor: str
    action: str
    target: str | None
    detail: JSON


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.AUDIT_READ], description="Newest first.")
    async def audit_log(self, info: Info, first: int | None = None, after: str | None = None) -> Connection[AuditEntry]:
        page = await info.context.data.read(audit.page, first=first, after=after)
        return Connection(**paging.parts(page, _show))


async def find(info: Info, id: str) -> AuditEntry | None:
    """The entry of the caller's tenant with this id; None for any other id."""
    found = await nodes.find(info, "aud", id, audit.get)
    return None if found is None else _show(found)


def _show(row: models.AuditEntry) -> AuditEntry:
    return AuditEntry(
        id=strawberry.ID(ids.show("aud", row.id)),
        at=row.at,
        actor=row.actor,
        action=row.action,
        target=row.target,
        detail=JSON(row.detail),
    )
