"""Who may ask for what, as a table for people: docs/permissions.md is printed by this."""

from __future__ import annotations

from uuid import UUID

from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types.field import StrawberryField

from schema import permissions, root
from schema.permissions import Rule
from tasks import registry
from tenants import member_roles
from tenants.context import ActorKind, Principal, Role
from tenants.errors import Forbidden

_NAMES = {id(rule): name for name, rule in vars(permissions).items() if isinstance(rule, Rule)}
_NOBODY = UUID(int=0)


def table() -> str:
    """Markdown: each root field with its rule's name, the scope that the rule asks for, and whom it admits."""
    callers = _callers()
    lines = [
        f"| Field | Rule | Scope | {' | '.join(callers)} |",
        f"|---|---|---|{'---|' * len(callers)}",
    ]
    types = root.build()._schema.type_map
    for type_name in ("Query", "Mutation", "Subscription"):
        for name, field in sorted(getattr(types[type_name], "fields", {}).items()):
            definition: StrawberryField = field.extensions[GraphQLCoreConverter.DEFINITION_BACKREF]
            rule = next(found for found in definition.extensions if isinstance(found, Rule))
            admitted = ("yes" if _admits(rule, caller) else "" for caller in callers.values())
            shown = f"`{type_name}.{name}`", _NAMES.get(id(rule), "FAMILY"), _scope(rule), *admitted
            lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _callers() -> dict[str, Principal]:
    """One of each kind: the built-in roles, a key and an operator who may do everything."""
    families = registry.families()
    found = {
        role.value.capitalize(): Principal(
            _NOBODY, ActorKind.USER, "usr", member_roles.built_in(role, families), role=role
        )
        for role in reversed(Role)
    }
    everything = frozenset({"*"})
    found["Key with `*`"] = Principal(_NOBODY, ActorKind.API_KEY, "key", everything)
    found["Operator"] = Principal(_NOBODY, ActorKind.OPERATOR, "key", everything)
    return found


def _scope(rule: Rule) -> str:
    if rule is permissions.TASKS_TRIGGER:
        return "`runs:write` or `<family>:write`, task by task"
    return f"`{rule.scope}`" if rule.scope else "none"


def _admits(rule: Rule, caller: Principal) -> bool:
    if rule is permissions.TASKS_TRIGGER:
        return any(caller.may_trigger(name) for name in registry.definitions())
    try:
        rule.admit(caller)
    except Forbidden:
        return False
    return True
