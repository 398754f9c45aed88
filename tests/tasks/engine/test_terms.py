"""What the dispatcher reads of tenants' terms: everything at first, then every change, whoever commits when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tasks.engine import limits, switches, terms
from tasks.engine.admission import LimitKind
from tasks.engine.limits import LimitRequest
from tenants import db
from tenants.context import Principal
from tests.support.hands import Hands
from tests.support.installations import Installation

CAP = LimitRequest("cap", LimitKind.CONCURRENCY, 2)


def _suspend(installation: Installation, tenant: Principal) -> None:
    installation.rows("UPDATE tenants SET suspended_at = now() WHERE id = %s", str(tenant.tenant))


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda made, who: made.write(who, limits.put, CAP), lambda found: [x.amount for x in found.limits] == [2]),
        (lambda made, who: made.write(who, switches.pause, "echo"), lambda found: found.paused == ["diagnostics.echo"]),
        (lambda made, who: made.write(who, switches.pause), lambda found: found.stopped),
        (lambda made, who: made.write(who, switches.pause, draining=True), lambda found: not found.stopped),
        (_suspend, lambda found: found.stopped),
    ],
)
def test_a_change_is_read_once_and_by_who_begins(
    installation: Installation,
    hands: Hands,
    tenant: Principal,
    other_tenant: Principal,
    change: Callable[[Installation, Principal], None],
    seen: Callable[[Any], bool],
) -> None:
    before = terms.read(hands.system, None)
    assert tenant.tenant not in before.terms
    change(installation, tenant)
    after = terms.read(hands.system, before.upto)
    assert set(after.terms) == {tenant.tenant}
    assert seen(after.terms[tenant.tenant])
    assert terms.read(hands.system, after.upto).terms == {}
    assert seen(terms.read(hands.system, None).terms[tenant.tenant])
    assert after.now >= before.now > 1.7e9


def test_a_change_that_commits_late_is_not_overlooked(
    installation: Installation, hands: Hands, tenant: Principal, other_tenant: Principal
) -> None:
    engine = db.sync_engine(installation.addresses.app, pool_size=1)
    with db.open_session(engine, tenant) as late:
        limits.put(late, CAP)
        installation.write(other_tenant, limits.put, CAP)
        between = terms.read(hands.system, terms.read(hands.system, None).upto)
        late.commit()
    engine.dispose()
    assert set(terms.read(hands.system, between.upto).terms) == {tenant.tenant}


def test_what_is_taken_away_is_read_as_gone(installation: Installation, hands: Hands, tenant: Principal) -> None:
    limit = installation.write(tenant, limits.put, replace(CAP, concurrency_key="*", task_name="echo"))
    before = terms.read(hands.system, None)
    [found] = before.terms[tenant.tenant].limits
    assert (found.id, found.task, found.key, found.amount) == (limit.id, "diagnostics.echo", "*", 2)
    installation.write(tenant, limits.remove, limit.id)
    assert terms.read(hands.system, before.upto).terms[tenant.tenant].limits == []
