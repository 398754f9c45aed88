"""Who may ask for what: named rules, of which every root field carries one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from strawberry.extensions.field_extension import FieldExtension

from schema.context import Info
from tenants.context import ActorKind, Principal, Role
from tenants.errors import Forbidden, TenantSuspended


class Rule(FieldExtension):
    """A condition on the caller that is checked before a field's resolver runs.

    Args:
        scope: the scope the caller must hold; None for anyone who is signed in.
        changes: whether the field changes something, which a suspended tenant may not.
    """

    def __init__(self, scope: str | None = None, *, changes: bool = False) -> None:
        self.scope = scope
        self.changes = changes

    def check(self, info: Info) -> None:
        """
        Raises:
            Unauthenticated: nobody is signed in.
            Forbidden: the caller lacks the scope.
            TenantSuspended: the field changes something and the caller's tenant is suspended.
        """
        self.admit(info.context.caller)
        if self.changes and info.context.suspended:
            raise TenantSuspended

    def admit(self, caller: Principal) -> None:
        """
        Raises:
            Forbidden: the caller lacks the scope.
        """
        if self.scope is not None:
            caller.require(self.scope)

    def resolve(self, next_: Callable[..., Any], source: Any, info: Info, **arguments: Any) -> Any:
        self.check(info)
        return next_(source, info, **arguments)

    async def resolve_async(
        self, next_: Callable[..., Awaitable[Any]], source: Any, info: Info, **arguments: Any
    ) -> Any:
        self.check(info)
        return await next_(source, info, **arguments)


class OperatorRule(Rule):
    """A rule that admits the installation's operators only.

    What they change holds for all tenants, so the services behind it ask again who calls: tasks, which have no rules,
    reach them too.
    """

    def admit(self, caller: Principal) -> None:
        super().admit(caller)
        if caller.kind is not ActorKind.OPERATOR:
            raise Forbidden("This is for the operators of the installation.")


class OwnerRule(Rule):
    """A rule that admits owners and operators only: no key, whatever its scopes."""

    def admit(self, caller: Principal) -> None:
        super().admit(caller)
        if caller.role is not Role.OWNER and caller.kind is not ActorKind.OPERATOR:
            raise Forbidden("This is for owners, who log in themselves: no API key will do.")


class Hidden(FieldExtension):
    """A field that reads as null for callers whom the condition does not admit.

    Args:
        admits: the condition.
    """

    def __init__(self, admits: Callable[[Principal], bool]) -> None:
        self._admits = admits

    def resolve(self, next_: Callable[..., Any], source: Any, info: Info, **arguments: Any) -> Any:
        return next_(source, info, **arguments) if self._admits(info.context.caller) else None


def administers(caller: Principal) -> bool:
    """Whether the caller is an operator, an owner or an administrator, or a key that may do everything."""
    return caller.kind is ActorKind.OPERATOR or caller.role in {Role.OWNER, Role.ADMIN} or "*" in caller.scopes


SIGNED_IN = Rule()
SIGNED_IN_CHANGE = Rule(changes=True)
RUNS_READ = Rule("runs:read")
RUNS_WRITE = Rule("runs:write", changes=True)
TASKS_TRIGGER = Rule(changes=True)
"""`runs:write`, or the family's: the service asks, task by task."""
SCHEDULES_READ = Rule("schedules:read")
SCHEDULES_WRITE = Rule("schedules:write", changes=True)
KEYS_MANAGE = Rule("keys:manage")
KEYS_CHANGE = Rule("keys:manage", changes=True)
MEMBERS_MANAGE = Rule("members:manage")
MEMBERS_CHANGE = Rule("members:manage", changes=True)
LIMITS_WRITE = Rule("limits:write", changes=True)
TENANT_READ = Rule("tenant:read")
TENANT_WRITE = Rule("tenant:write", changes=True)
OPERATORS_READ = OperatorRule("tenant:read")
OPERATORS_WRITE = OperatorRule("tenant:write", changes=True)
OWNERS_WRITE = OwnerRule("tenant:write", changes=True)
"""For owners: who decides where people log in can be any of them."""
AUDIT_READ = Rule("audit:read")
ADMINS = Hidden(administers)
"""For owners, administrators and operators."""


def family_read(family: str) -> Rule:
    """The rule of a family's queries. Call it once for each family."""
    return Rule(f"{family}:read")


def family_write(family: str) -> Rule:
    """The rule of a family's mutations. Call it once for each family."""
    return Rule(f"{family}:write", changes=True)
