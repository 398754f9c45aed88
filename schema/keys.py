"""API keys: made, listed, revoked."""

from __future__ import annotations

from datetime import datetime

import strawberry

from schema import nodes, paging, permissions
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.nodes import Node
from schema.paging import Connection
from schema.problems import Payload
from tenants import ids, keys, models


@strawberry.type
class ApiKey(Node):
    name: str
    prefix: str
    scopes: list[str]
    task_names: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    address_ranges: list[str] | None = strawberry.field(
        description="The only addresses it is taken from, in CIDR form; null for all."
    )
    predecessor_id: strawberry.ID | None = strawberry.field(description="The key that this one replaces.")


@strawberry.input
class CreateApiKeyInput:
    name: str
    scopes: list[str]
    task_names: list[str] | None = None
    expires_at: datetime | None = None
    address_ranges: list[str] | None = strawberry.field(
        default=None, description="The only addresses it is taken from: single ones, or ranges such as 192.0.2.0/24."
    )


@strawberry.type(description="secret is shown this once and never again.")
class CreateApiKeyPayload(Payload):
    api_key: ApiKey | None = None
    secret: str | None = None


@strawberry.type
class ApiKeyPayload(Payload):
    api_key: ApiKey | None = None


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.KEYS_MANAGE], description="Newest first.")
    async def api_keys(self, info: Info, first: int | None = None, after: str | None = None) -> Connection[ApiKey]:
        page = await info.context.data.read(keys.page, first=first, after=after)
        return Connection(**paging.parts(page, show))


@strawberry.type
class Mutation:
    @strawberry.mutation(extensions=[permissions.KEYS_CHANGE, AS_PROBLEM])
    async def create_api_key(self, info: Info, input: CreateApiKeyInput) -> CreateApiKeyPayload:
        created = await info.context.data.write(
            keys.create,
            info.context.settings.auth.key_pepper,
            name=input.name,
            scopes=input.scopes,
            task_names=input.task_names,
            address_ranges=input.address_ranges,
            expires_at=input.expires_at,
        )
        return CreateApiKeyPayload(
            success=True,
            message=f"Keep the secret of {created.key.name} now: it is not shown again.",
            api_key=show(created.key),
            secret=created.secret,
        )

    @strawberry.mutation(
        extensions=[permissions.KEYS_CHANGE, AS_PROBLEM],
        description="A new key that can do the same; the old one is good for the overlap yet, at most 30 days.",
    )
    async def rotate_api_key(
        self, info: Info, id: strawberry.ID, overlap_seconds: int | None = 3600
    ) -> CreateApiKeyPayload:
        created = await info.context.data.write(
            keys.rotate,
            info.context.settings.auth.key_pepper,
            ids.read("key", id),
            3600 if overlap_seconds is None else overlap_seconds,
        )
        return CreateApiKeyPayload(
            success=True,
            message=f"Keep the new secret of {created.key.name} now: it is not shown again.",
            api_key=show(created.key),
            secret=created.secret,
        )

    @strawberry.mutation(extensions=[permissions.KEYS_CHANGE, AS_PROBLEM])
    async def revoke_api_key(self, info: Info, id: strawberry.ID) -> ApiKeyPayload:
        row = await info.context.data.write(keys.revoke, ids.read("key", id))
        return ApiKeyPayload(success=True, message=f"{row.name} is revoked.", api_key=show(row))


async def find(info: Info, id: str) -> ApiKey | None:
    """The caller's tenant's key with this id; None for any other id."""
    found = await nodes.find(info, "key", id, keys.get)
    return None if found is None else show(found)


def show(row: models.ApiKey) -> ApiKey:
    """A row as clients see it."""
    return ApiKey(
        id=strawberry.ID(ids.show("key", row.id)),
        name=row.name,
        prefix=row.prefix,
        scopes=row.scopes,
        task_names=row.task_names,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
        address_ranges=row.address_ranges,
        predecessor_id=None if row.predecessor_id is None else strawberry.ID(ids.show("key", row.predecessor_id)),
    )
