"""Who is calling, and the only way a caller reaches data: a principal and its scope."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Concatenate, ParamSpec, TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from tenants import db
from tenants.addresses import Range
from tenants.errors import Forbidden

P = ParamSpec("P")
T = TypeVar("T")


class ActorKind(StrEnum):
    """What kind of actor stands behind an action."""

    USER = "USER"
    API_KEY = "API_KEY"
    OPERATOR = "OPERATOR"
    SCHEDULE = "SCHEDULE"
    PROVIDER = "PROVIDER"
    RUN = "RUN"


class Role(StrEnum):
    """What a member may do in a tenant; the order is from most to least."""

    OWNER = "OWNER"
    ADMIN = "ADMIN"
    MEMBER = "MEMBER"
    VIEWER = "VIEWER"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts, in exactly one tenant.

    Made only from a verified token or key, from a verified grant, or by `tenants.system`.
    """

    tenant: UUID
    kind: ActorKind
    actor: str
    """The actor's outside id: `usr_…`, `key_…`, `run_…`, `sch_…`, `ses_…` or `inv_…` where only that is known; or a
    name: an operator's, a provider's (`oidc.corp`), what serves people who are in no tenant yet (`sign-up`)."""
    scopes: frozenset[str] = frozenset()
    role: Role | None = None
    role_name: str | None = None
    """What the tenant calls the role, where it is one of its own."""
    email: str | None = None
    task_names: frozenset[str] | None = None
    """The tasks an API key is narrowed to; None for all."""
    address_ranges: tuple[Range, ...] | None = None
    """The only addresses an API key is taken from; None for all."""
    expires_at: datetime | None = None
    """When an API key ends; None for never."""
    person: UUID | None = None
    """The person who acts, or who made the key that does."""
    login: UUID | None = None
    """The login that the access token belongs to."""

    def may(self, scope: str) -> bool:
        """Whether the principal holds the scope: itself, or `*`."""
        return "*" in self.scopes or scope in self.scopes

    def require(self, scope: str) -> None:
        """
        Raises:
            Forbidden: the principal does not hold the scope.
        """
        if not self.may(scope):
            raise Forbidden(f"This needs the scope {scope}.", required_scope=scope)

    def may_trigger(self, task_name: str) -> bool:
        """Whether the principal may trigger the task with this full name."""
        family = task_name.partition(".")[0]
        named = self.task_names is None or task_name in self.task_names
        return named and (self.may("runs:write") or self.may(f"{family}:write"))


class Scope:
    """All a resolver reaches data with: two verbs, one short transaction each, always inside the principal's tenant.

    However many fields a request asks for at once, it holds a few sessions at most.
    """

    __slots__ = ("_after_commit", "_database", "_places", "principal")
    _SESSIONS = 4

    def __init__(
        self,
        principal: Principal,
        database: db.AsyncDatabase,
        after_commit: Callable[[list[object]], Awaitable[None]],
    ) -> None:
        self.principal = principal
        self._database = database
        self._after_commit = after_commit
        self._places = asyncio.Semaphore(self._SESSIONS)

    async def read(self, service: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a service in a read-only transaction of its own and return what it returns."""
        async with self._places:
            result, _ = await self._database.call(self.principal, service, args, kwargs, read_only=True)
        return result

    async def write(self, service: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a service in a transaction of its own, commit, send the notices it left, return what it returns."""
        async with self._places:
            result, notices = await self._database.call(self.principal, service, args, kwargs)
        if notices:
            await self._after_commit(notices)
        return result


def principal(session: Session) -> Principal:
    """Whose session this is."""
    found = session.info["principal"]
    assert isinstance(found, Principal)
    return found
