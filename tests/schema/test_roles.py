"""What each role may ask for: every root field with every built-in role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from schema import permissions
from schema.context import Context
from tasks import registry
from tenants import member_roles
from tenants.context import ActorKind, Role, Scope
from tests.schema.test_permissions import ROOT, _answer, _rule

MANAGERS = {
    "Mutation.assignPlan",
    "Mutation.backfillSchedule",
    "Mutation.createApiKey",
    "Mutation.createRole",
    "Mutation.createSchedule",
    "Mutation.deleteRole",
    "Mutation.deleteSchedule",
    "Mutation.disableFamily",
    "Mutation.enableFamily",
    "Mutation.inviteMember",
    "Mutation.pauseSchedule",
    "Mutation.pauseTasks",
    "Mutation.removeLimit",
    "Mutation.removeMember",
    "Mutation.resumeSchedule",
    "Mutation.resumeTasks",
    "Mutation.revokeApiKey",
    "Mutation.revokeInvitation",
    "Mutation.removeCredential",
    "Mutation.removeIdentityProvider",
    "Mutation.removePlan",
    "Mutation.requireSingleSignOn",
    "Mutation.rotateApiKey",
    "Mutation.setCredential",
    "Mutation.setIdentityProvider",
    "Mutation.setLimit",
    "Mutation.setMemberRole",
    "Mutation.setPlan",
    "Mutation.triggerSchedule",
    "Mutation.updateRole",
    "Mutation.updateSchedule",
    "Query.apiKeys",
    "Query.auditLog",
    "Query.invitations",
    "Query.members",
    "Query.roles",
}
"""For owners and administrators, and for roles of a tenant's own that say so."""
WORKERS = {
    "Mutation.cancelRun",
    "Mutation.cancelRuns",
    "Mutation.exportSales",
    "Mutation.generateSalesReport",
    "Mutation.importSalesOrders",
    "Mutation.recordSalesStock",
    "Mutation.refreshSales",
    "Mutation.retryDeadLetters",
    "Mutation.retryRun",
    "Mutation.retryRuns",
    "Mutation.triggerBackgroundTask",
    "Mutation.triggerBackgroundTasks",
    "Mutation.updateSalesSettings",
}
"""For members too."""
REFUSED: dict[Role, set[str]] = {
    Role.OWNER: set(),
    Role.ADMIN: set(),
    Role.MEMBER: MANAGERS,
    Role.VIEWER: MANAGERS | WORKERS,
}


@pytest.mark.parametrize("role", Role)
def test_a_role_is_refused_what_is_listed_and_nothing_else(role: Role, new_context: Callable[..., Context]) -> None:
    caller = replace(
        new_context(*member_roles.built_in(role, registry.offered())).caller, kind=ActorKind.USER, role=role
    )
    refused = set()
    for name in ROOT:
        rule = _rule(name)
        if rule is permissions.TASKS_TRIGGER or (rule.scope is None and name in WORKERS):
            allowed = caller.may_trigger("sales.refresh_all_materialized_views")
        else:
            allowed = rule.scope is None or caller.may(rule.scope)
        if not allowed:
            refused.add(name)
    assert refused == REFUSED[role]


@pytest.mark.parametrize("name", sorted(name for name in MANAGERS if name.startswith("Mutation.")))
async def test_a_member_is_refused_where_it_says_so(name: str, new_context: Callable[..., Context]) -> None:
    context = new_context(*member_roles.built_in(Role.MEMBER, registry.offered()))
    assert context.scope is not None
    member = replace(context.caller, kind=ActorKind.USER, role=Role.MEMBER)
    context.scope = Scope(member, context.scope._database, context.scope._after_commit)
    assert await _answer(name, context) in ({"problem": "FORBIDDEN"}, {"error": "FORBIDDEN"})
