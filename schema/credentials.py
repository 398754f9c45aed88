"""Integration credentials: set, listed, removed; their secrets go in and never come out."""

from __future__ import annotations

from datetime import datetime

import strawberry
from pydantic import SecretStr

from schema import permissions
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.problems import DeletePayload, Payload
from tenants import credentials, models


@strawberry.type(description="What tasks sign in to a provider with. Nobody can read its secret back.")
class Credential:
    name: str
    kind: str = strawberry.field(description="What it is, such as `api_key`.")
    created_at: datetime
    changed_at: datetime


@strawberry.input
class CredentialInput:
    name: str = strawberry.field(description="a-z, 0-9, `_`, `.` and `-`, beginning with a letter.")
    kind: str = strawberry.field(default="api_key", description="What it is, for people.")
    secret: str


@strawberry.type
class CredentialPayload(Payload):
    credential: Credential | None = None


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.TENANT_READ], description="By name.")
    async def credentials(self, info: Info) -> list[Credential]:
        return [_show(row) for row in await info.context.data.read(credentials.every)]


@strawberry.type
class Mutation:
    @strawberry.mutation(
        extensions=[permissions.TENANT_WRITE, AS_PROBLEM],
        description="One of the name is replaced. `oidc.<name>`, of an identity provider, is for owners.",
    )
    async def set_credential(self, info: Info, input: CredentialInput) -> CredentialPayload:
        _check(info, input.name)
        ring = info.context.settings.auth.credential_keys
        row = await info.context.data.write(credentials.put, ring, input.name, input.kind, SecretStr(input.secret))
        return CredentialPayload(success=True, message=f"{row.name} is set.", credential=_show(row))

    @strawberry.mutation(
        extensions=[permissions.TENANT_WRITE, AS_PROBLEM],
        description="`oidc.<name>`, of an identity provider, is for owners.",
    )
    async def remove_credential(self, info: Info, name: str) -> DeletePayload:
        _check(info, name)
        await info.context.data.write(credentials.remove, name)
        return DeletePayload(success=True, message=f"{name} is gone.", deleted_id=strawberry.ID(name))


def _check(info: Info, name: str) -> None:
    """
    Raises:
        Forbidden: it is an identity provider's, and the caller may set none of these.
    """
    if name.startswith(credentials.OF_PROVIDERS):
        permissions.OWNERS_WRITE.check(info)


def _show(row: models.Credential) -> Credential:
    return Credential(name=row.name, kind=row.kind, created_at=row.created_at, changed_at=row.changed_at)
