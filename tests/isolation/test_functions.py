"""What a worker's connection, standing in one tenant, can do to another's run through each function: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg2
import pytest

from tasks.engine.ledger import Ledger, Settlement
from tasks.engine.outcomes import Fenced
from tasks.engine.states import RunState
from tenants import ids
from tenants.context import Principal
from tests.support.hands import WORKER, Hands
from tests.support.installations import Installation
from tests.support.logins import Login

TABLES = ("runs", "run_events", "run_steps", "run_progress", "run_leases", "effects", "idempotency_keys")
EFFECT = "a-key-of-theirs"


@dataclass(frozen=True)
class Victim:
    """Another tenant's run at work, with an effect begun, and everything that is written down of it."""

    principal: Principal
    run: UUID
    fence: int
    installation: Installation

    def state(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of the tenant."""
        return {
            table: self.installation.rows(
                f"SELECT t::text FROM {table} t WHERE tenant_id = %s ORDER BY 1", str(self.principal.tenant)
            )
            for table in TABLES
        }


@pytest.fixture
def victim(installation: Installation, hands: Hands, other_tenant: Principal) -> Iterator[Victim]:
    """Checks afterwards that not one row of the other tenant has changed."""
    run, fence = hands.running(other_tenant)
    hands.app.call("SELECT save_progress(%s, %s, %s, 1, 2, 'half')", other_tenant.tenant, run, fence)
    hands.app.call("SELECT begin_effect(%s, %s, %s, %s, %s)", other_tenant.tenant, run, fence, EFFECT, ids.new())
    made = Victim(other_tenant, run, fence, installation)
    before = made.state()
    yield made
    assert made.state() == before
    assert hands.settle(other_tenant, run, fence, Settlement(RunState.SUCCEEDED)).state == "SUCCEEDED"


@pytest.fixture
def app(hands: Hands) -> Ledger:
    return hands.app


def test_anothers_release_cannot_be_claimed(
    installation: Installation, hands: Hands, tenant: Principal, other_tenant: Principal
) -> None:
    run = installation.trigger(other_tenant, "diagnostics.echo")
    fence = hands.release(other_tenant, run)[run]
    assert hands.claim(tenant, run, fence) is None
    assert hands.claim(other_tenant, run, fence, "diagnostics.sleep") is None
    assert installation.history(run)[-1] == (2, "RELEASED", 0)
    assert hands.claim(other_tenant, run, fence) is not None


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.SCHEDULED])
def test_anothers_attempt_cannot_be_settled(victim: Victim, hands: Hands, tenant: Principal, state: RunState) -> None:
    with pytest.raises(Fenced):
        hands.settle(tenant, victim.run, victim.fence, Settlement(state))


def test_anothers_deadline_cannot_be_moved(victim: Victim, app: Ledger, tenant: Principal) -> None:
    with pytest.raises(Fenced):
        app.call("SELECT extend_run(%s, %s, %s, %s)", tenant.tenant, victim.run, victim.fence, timedelta(hours=1))


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT begin_effect(%s, %s, %s, %s, gen_random_uuid())",
        "SELECT finish_effect(%s, %s, %s, %s, '1')",
        "SELECT forget_effect(%s, %s, %s, %s)",
    ],
)
def test_anothers_effects_can_be_neither_begun_nor_answered_nor_forgotten(
    victim: Victim, app: Ledger, tenant: Principal, installation: Installation, statement: str
) -> None:
    with pytest.raises(Fenced):
        app.call(statement, tenant.tenant, victim.run, victim.fence, EFFECT)
    assert installation.rows("SELECT * FROM effects WHERE tenant_id = %s", str(tenant.tenant)) == []


def test_anothers_progress_stays_what_it_was(victim: Victim, app: Ledger, tenant: Principal) -> None:
    app.call("SELECT save_progress(%s, %s, %s, 99, 100, 'ours')", tenant.tenant, victim.run, victim.fence)


def test_who_was_replaced_leaves_the_progress_as_it_is(victim: Victim, app: Ledger) -> None:
    app.call("SELECT save_progress(%s, %s, %s, 99, 100, 'late')", victim.principal.tenant, victim.run, victim.fence - 1)


def test_anothers_attempt_cannot_be_reported_dead(victim: Victim, hands: Hands, tenant: Principal) -> None:
    with closing(psycopg2.connect(hands.installation.addresses.app)) as theirs, theirs.cursor() as cursor:
        cursor.execute("SELECT set_config('application_name', %s, false)", (f"{victim.run}/{victim.fence}",))
        assert hands.app.report_crash(tenant.tenant, victim.run, victim.fence, "made up") is None
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]


def test_a_lease_is_renewed_by_the_worker_that_holds_it_only(victim: Victim, hands: Hands) -> None:
    assert hands.renew(victim.run, victim.fence, "w2@by-hand")[0] == "gone"
    assert hands.renew(victim.run, victim.fence - 1)[0] == "gone"
    assert hands.renew(ids.new(), victim.fence)[0] == "gone"


def test_anothers_runs_cannot_be_pruned(
    installation: Installation, hands: Hands, tenant: Principal, other_tenant: Principal
) -> None:
    run, fence = hands.running(other_tenant)
    hands.settle(other_tenant, run, fence, Settlement(RunState.SUCCEEDED))
    statement = "SELECT prune_runs(%s, clock_timestamp() + interval '1 day')"
    app = Login(installation.addresses.app)
    assert app.error(statement, other_tenant.tenant) == "42501"
    with pytest.raises(psycopg2.errors.InsufficientPrivilege), app.inside(tenant.tenant):
        app.rows(statement, other_tenant.tenant)
    with app.inside(tenant.tenant, commit=True):
        assert app.value(statement, tenant.tenant) == 0
    assert installation.run(other_tenant, run).state == "SUCCEEDED"
    with app.inside(other_tenant.tenant, commit=True):
        assert app.value(statement, other_tenant.tenant) == 1
    assert installation.history(run) == []
    app.close()


def test_what_was_refused_stays_noted(installation: Installation, app: Ledger) -> None:
    note = "SELECT refuse_messages(%s, %s, 'w', %s, %s, %s, %s)"
    app.call(note, ["json"], [3], [ids.new()], ["json"], ["q"], ["d"])
    app.call(note, ["json"], [-3], [], [], [], [])
    assert installation.rows("SELECT total FROM refused_counts WHERE reason = 'json'") == [(3,)]
    assert installation.rows("SELECT count(*) FROM refused_messages") == [(1,)]
    login = Login(installation.addresses.app)
    for statement in ("DELETE FROM refused_messages", "DELETE FROM refused_counts", "SELECT * FROM refused_messages"):
        assert login.error(statement) == "42501"
    login.close()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT create_tenant(gen_random_uuid(), 'mine', 'm', 'UTC', '{}', 'OPERATOR', 'me')",
        "SELECT enroll_user(gen_random_uuid(), 'a@b.c', NULL)",
        "SELECT settle_user(gen_random_uuid(), 'a@b.c', 'h')",
        "UPDATE users SET password_hash = 'h'",
        "SELECT ensure_partitions(30)",
        "SELECT drop_ended_partitions(now())",
        "SELECT delete_expired_keys(1)",
        "SELECT delete_ended_links(now(), 1)",
        "SELECT delete_ended_logins(now(), 1)",
        "SELECT delete_finished_bulk_actions(now(), 1)",
        "SELECT delete_effects_of_no_run(now(), gen_random_uuid(), '', 1)",
        "SELECT drop_empty_order_partitions(now())",
        "SELECT take_lead('main', 'me', interval '1 h')",
        "SELECT resign('main', 'by-hand')",
        "SELECT release_runs('main', 1, '{}', '{}')",
        "SELECT requeue_unclaimed_runs('main', 1, interval '0', 1)",
        "SELECT queue_due_runs('main', 1, 1)",
        "SELECT queue_runs('{}', '{}', NULL)",
        "SELECT rescue_runs('main', 1, 3, interval '0', 1)",
        "SELECT unrelease_runs('main', 1, '{}', '{}', '{}')",
        "SELECT advance_bulk_action('main', 1, 1, 1, interval '0')",
        "UPDATE bulk_actions SET pending = '{}'",
        "DELETE FROM bulk_actions",
        "SELECT new_id()",
        "SELECT seal_audit(1)",
        "SELECT fold_usage(1)",
        "SELECT assign_plan('theirs', 'standard', '{}', gen_random_uuid(), 'OPERATOR', 'me')",
        "INSERT INTO plans (name, quotas) VALUES ('mine', '{}')",
        "UPDATE usage SET amount = 0",
        "DELETE FROM usage_entries",
        "UPDATE audit_entries SET action = 'nothing'",
        "DELETE FROM audit_entries",
        "INSERT INTO audit_entries (id, actor_kind, actor, action, detail, position)"
        " VALUES (gen_random_uuid(), 'USER', 'me', 'nothing', '{}', 1)",
        "UPDATE dispatcher_leader SET holder = 'me'",
        "DELETE FROM workers",
        "UPDATE tenants SET suspended_at = now()",
        "INSERT INTO tenants (id, slug, name) VALUES (gen_random_uuid(), 'mine', 'm')",
        "DELETE FROM runs",
        "DELETE FROM run_events",
        "UPDATE run_events SET note = ''",
    ],
)
def test_the_app_login_does_nothing_of_what_is_the_systems(installation: Installation, statement: str) -> None:
    login = Login(installation.addresses.app)
    assert login.error(statement) == "42501"
    login.close()


def test_a_login_is_found_by_all_of_its_parts_only(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    login = Login(installation.addresses.app)
    session, user = ids.new(), ids.new()
    installation.rows("INSERT INTO users (id, email) VALUES (%s, 'bob@example.org')", str(user))
    installation.rows(
        "INSERT INTO memberships (tenant_id, user_id, role) VALUES (%s, %s, 'OWNER')", str(tenant.tenant), str(user)
    )
    installation.rows(
        "INSERT INTO login_sessions (tenant_id, id, user_id, token_hash, expires_at) VALUES (%s, %s, %s, 'h', now())",
        str(tenant.tenant), str(session), str(user),
    )  # fmt: skip
    assert len(login.rows("SELECT * FROM find_session(%s, %s)", tenant.tenant, session)) == 1
    assert login.rows("SELECT * FROM find_session(%s, %s)", other_tenant.tenant, session) == []
    assert login.rows("SELECT * FROM find_session(%s, %s)", tenant.tenant, ids.new()) == []
    slug = installation.slug(tenant)
    other = installation.slug(other_tenant)
    assert len(login.rows("SELECT * FROM find_login(%s, 'bob@example.org')", slug)) == 1
    assert login.rows("SELECT * FROM find_login(%s, 'bob@example.org')", other) == []
    login.close()


def test_a_password_and_other_tenants_are_reached_by_an_open_login_only(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    login = Login(installation.addresses.app)
    session, user = ids.new(), ids.new()
    installation.rows("INSERT INTO users (id, email, password_hash) VALUES (%s, 'eve@example.org', 'h')", str(user))
    for each in (tenant, other_tenant):
        installation.rows(
            "INSERT INTO memberships (tenant_id, user_id, role) VALUES (%s, %s, 'OWNER')", str(each.tenant), str(user)
        )
    installation.rows(
        "INSERT INTO login_sessions (tenant_id, id, user_id, token_hash, expires_at)"
        " VALUES (%s, %s, %s, 'h', now() + interval '1 h')",
        str(tenant.tenant), str(session), str(user),
    )  # fmt: skip
    change, own, tenants = (
        "SELECT change_password(%s, %s, 'h', 'new')", "SELECT own_password(%s, %s)", "SELECT * FROM tenants_of(%s, %s)"
    )  # fmt: skip
    for wrong in ((other_tenant.tenant, session), (tenant.tenant, ids.new())):
        assert login.value(change, *wrong) is False
        assert login.value(own, *wrong) is None
        assert login.rows(tenants, *wrong) == []
    assert len(login.rows(tenants, tenant.tenant, session)) == 2
    installation.rows("UPDATE login_sessions SET provider = 'corp' WHERE id = %s", str(session))
    assert (login.value(change, tenant.tenant, session), login.value(own, tenant.tenant, session)) == (False, None)
    assert [str(reached) for reached, *_ in login.rows(tenants, tenant.tenant, session)] == [str(tenant.tenant)]
    installation.rows("UPDATE login_sessions SET provider = NULL WHERE id = %s", str(session))
    installation.rows("UPDATE login_sessions SET revoked_at = now() WHERE id = %s", str(session))
    assert (login.value(change, tenant.tenant, session), login.value(own, tenant.tenant, session)) == (False, None)
    assert installation.rows("SELECT password_hash FROM users WHERE id = %s", str(user)) == [("h",)]
    login.close()


def test_a_link_that_was_not_mailed_changes_nothing(
    installation: Installation, tenant: Principal, other_tenant: Principal
) -> None:
    login = Login(installation.addresses.app)
    invitation = ids.new()
    installation.rows(
        "INSERT INTO invitations (tenant_id, id, email, role, invited_by, expires_at)"
        " VALUES (%s, %s, 'fay@example.org', 'VIEWER', 'me', now() + interval '1 h')",
        str(tenant.tenant), str(invitation),
    )  # fmt: skip
    accept = "SELECT * FROM accept_invitation(%s, %s, gen_random_uuid(), 'h')"
    assert login.rows(accept, other_tenant.tenant, invitation) == []
    assert login.rows(accept, tenant.tenant, ids.new()) == []
    assert login.rows("SELECT * FROM find_invitation(%s, %s)", other_tenant.tenant, invitation) == []
    assert login.value("SELECT reset_password(%s, 'h')", invitation) is None
    signed_up = (
        "SELECT sign_up(%s, gen_random_uuid(), 'fays', '{}', gen_random_uuid(), 'h', gen_random_uuid(), 'me', 'usr_x')"
    )
    assert login.value(signed_up, invitation) == "gone"
    assert installation.rows("SELECT 1 FROM users WHERE email = 'fay@example.org'") == []
    login.close()


def test_a_worker_that_is_gone_takes_no_lease_with_it(victim: Victim, app: Ledger) -> None:
    app.call("SELECT worker_gone(%s)", WORKER)
