"""What each role may ask for: every root field with every built-in role."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from schema import permissions
from schema.context import Context, Info
from tasks import registry
from tenants import member_roles
from tenants.context import Role
from tenants.errors import Forbidden
from tests.support import fields
from tests.support.fields import ROOT

OPERATORS = {
    "Mutation.assignPlan",
    "Mutation.removePlan",
    "Mutation.setPlan",
    "Query.plans",
}
"""For nobody in a tenant."""
OWNERS = {
    "Mutation.removeIdentityProvider",
    "Mutation.requireSingleSignOn",
    "Mutation.setIdentityProvider",
}
"""For owners, and for no key."""
MANAGERS = {
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
    "Mutation.rotateApiKey",
    "Mutation.setCredential",
    "Mutation.setLimit",
    "Mutation.setMemberRole",
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
    "Mutation.recordSalesStock",
    "Mutation.retryDeadLetters",
    "Mutation.retryRun",
    "Mutation.retryRuns",
    "Mutation.updateSalesSettings",
}
"""For members too."""
TRIGGERS = {
    "Mutation.exportSales",
    "Mutation.generateSalesReport",
    "Mutation.importSalesOrders",
    "Mutation.refreshSales",
    "Mutation.triggerBackgroundTask",
    "Mutation.triggerBackgroundTasks",
}
"""Where the service asks, task by task."""
REFUSED: dict[Role, set[str]] = {
    Role.OWNER: OPERATORS,
    Role.ADMIN: OPERATORS | OWNERS,
    Role.MEMBER: OPERATORS | OWNERS | MANAGERS,
    Role.VIEWER: OPERATORS | OWNERS | MANAGERS | WORKERS,
}


@pytest.fixture(params=Role)
def context(request: pytest.FixtureRequest, new_context: Callable[..., Context]) -> Context:
    """The context of somebody with a built-in role."""
    return new_context(*member_roles.built_in(request.param, registry.offered()), role=request.param)


def test_a_role_is_refused_what_is_listed_and_nothing_else(context: Context) -> None:
    info = cast("Info", SimpleNamespace(context=context))
    refused = set()
    for name in ROOT:
        try:
            fields.rule(name).check(info)
        except Forbidden:
            refused.add(name)
    assert context.caller.role is not None
    assert refused == REFUSED[context.caller.role]


def test_a_key_with_every_scope_is_no_owner(new_context: Callable[..., Context]) -> None:
    info = cast("Info", SimpleNamespace(context=new_context("*")))
    for name in OWNERS:
        with pytest.raises(Forbidden):
            fields.rule(name).check(info)


def test_a_viewer_triggers_nothing_and_everybody_else_any_task(context: Context) -> None:
    assert {name for name in ROOT if fields.rule(name) is permissions.TASKS_TRIGGER} == TRIGGERS
    names = [task.name for family in registry.offered().values() for task in family.tasks]
    allowed = {context.caller.may_trigger(name) for name in names}
    assert allowed == {context.caller.role is not Role.VIEWER}
