"""Identity providers: how members log in elsewhere, and whether they may only do so."""

from __future__ import annotations

from datetime import datetime

import strawberry
from pydantic import SecretStr

from schema import permissions
from schema.context import Info
from schema.errors import AS_PROBLEM
from schema.problems import DeletePayload, Payload
from schema.tenants import TenantPayload, read_tenant
from tenants import identity, models, providers
from tenants.context import Role
from tenants.errors import InvalidInput, Issue
from tenants.providers import ProviderRequest


@strawberry.type
class GroupRole:
    group: str
    role: Role


@strawberry.type(description="An OpenID provider. Its client secret is the credential `oidc.<name>`.")
class IdentityProvider:
    name: str
    issuer: str
    client_id: str
    scopes: list[str]
    domains: list[str]
    groups_claim: str
    roles: list[GroupRole]
    default_role: Role | None
    just_in_time: bool
    login_url: str = strawberry.field(description="Where a login begins, with return_to and challenge in its query.")
    callback_url: str = strawberry.field(description="What the provider is to be told that it may send people back to.")
    created_at: datetime
    changed_at: datetime


@strawberry.input
class GroupRoleInput:
    group: str
    role: Role


@strawberry.input
class IdentityProviderInput:
    name: str = strawberry.field(description="a-z, 0-9 and `-`, beginning with a letter.")
    issuer: str = strawberry.field(description="The address it calls itself, exactly.")
    client_id: str
    client_secret: str | None = strawberry.field(default=None, description="Left out, it stays as it is.")
    scopes: list[str] = strawberry.field(default_factory=lambda: list(providers.SCOPES))
    domains: list[str] = strawberry.field(
        default_factory=list,
        description="Whose e-mail addresses it may vouch for, when somebody comes for the first time.",
    )
    groups_claim: str = strawberry.field(default="groups", description="The claim that lists a person's groups.")
    roles: list[GroupRoleInput] = strawberry.field(
        default_factory=list,
        description="Where there are any, they decide at each login; of several the highest. Owners stay owners.",
    )
    default_role: Role | None = strawberry.field(
        default=None, description="Of people in no group that is named. Without, they are let in nowhere."
    )
    just_in_time: bool = strawberry.field(default=False, description="Whether it makes new members.")


@strawberry.type
class IdentityProviderPayload(Payload):
    identity_provider: IdentityProvider | None = None


@strawberry.type
class Query:
    @strawberry.field(extensions=[permissions.TENANT_READ], description="By name.")
    async def identity_providers(self, info: Info) -> list[IdentityProvider]:
        logins = await _logins(info)
        return [_show(row, logins) for row in await info.context.data.read(providers.every)]


@strawberry.type
class Mutation:
    @strawberry.mutation(
        extensions=[permissions.OWNERS_WRITE, AS_PROBLEM],
        description="For owners. One of the name is changed; with another issuer, all start anew.",
    )
    async def set_identity_provider(self, info: Info, input: IdentityProviderInput) -> IdentityProviderPayload:
        roles = {given.group: given.role for given in input.roles}
        if len(roles) < len(input.roles):
            raise InvalidInput(issues=[Issue(("roles",), "name a group twice")])
        row = await info.context.data.write(
            providers.put,
            info.context.settings,
            ProviderRequest(
                input.name,
                input.issuer,
                input.client_id,
                None if input.client_secret is None else SecretStr(input.client_secret),
                input.scopes,
                input.domains,
                input.groups_claim,
                roles,
                input.default_role,
                input.just_in_time,
            ),
        )
        shown = _show(row, await _logins(info))
        return IdentityProviderPayload(success=True, message=f"{row.name} is set.", identity_provider=shown)

    @strawberry.mutation(
        extensions=[permissions.OWNERS_WRITE, AS_PROBLEM],
        description="For owners. The logins that it vouched for end.",
    )
    async def remove_identity_provider(self, info: Info, name: str) -> DeletePayload:
        await info.context.data.write(providers.remove, name)
        return DeletePayload(success=True, message=f"{name} is gone.", deleted_id=strawberry.ID(name))

    @strawberry.mutation(
        extensions=[permissions.OWNERS_WRITE, AS_PROBLEM],
        description="For owners. Owners keep their passwords; other logins without a provider end.",
    )
    async def require_single_sign_on(self, info: Info, required: bool) -> TenantPayload:
        await info.context.data.write(providers.require, required)
        told = "Members log in through an identity provider only." if required else "Passwords are good again."
        return TenantPayload(success=True, message=told, tenant=await read_tenant(info))


async def _logins(info: Info) -> str:
    """What the addresses of the tenant's logins begin with."""
    tenant = await info.context.data.read(identity.tenant)
    return f"{info.context.settings.api.public_url.rstrip('/')}/auth/{tenant.slug}/oidc"


def _show(row: models.IdentityProvider, logins: str) -> IdentityProvider:
    login = f"{logins}/{row.name}"
    return IdentityProvider(
        name=row.name,
        issuer=row.issuer,
        client_id=row.client_id,
        scopes=row.scopes,
        domains=row.domains,
        groups_claim=row.groups_claim,
        roles=[GroupRole(group=group, role=Role(role)) for group, role in row.roles.items()],
        default_role=None if row.default_role is None else Role(row.default_role),
        just_in_time=row.just_in_time,
        login_url=login,
        callback_url=f"{login}/callback",
        created_at=row.created_at,
        changed_at=row.changed_at,
    )
