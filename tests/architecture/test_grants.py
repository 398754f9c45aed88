"""What each database login may do, listed in full: whoever widens it has to say so here."""

from __future__ import annotations

from collections import defaultdict

import psycopg2
import pytest

from api.embedded import Servers
from tenants import roles
from tenants.errors import Misconfigured
from tenants.roles import Addresses
from tests.support.installations import Installation

READ, APPEND, WRITE = {"SELECT"}, {"SELECT", "INSERT"}, {"SELECT", "INSERT", "UPDATE"}
EVERYTHING = {"SELECT", "INSERT", "UPDATE", "DELETE"}
APP = {
    "audit_entries": READ,
    "bulk_actions": APPEND,
    "dispatcher_leader": READ,
    "idempotency_keys": WRITE,
    "limit_states": READ,
    "plans": EVERYTHING,
    "refused_counts": READ,
    "run_events": APPEND,
    "run_progress": WRITE,
    "run_steps": APPEND,
    "runs": WRITE,
    "tenants": READ,
    "usage": READ,
    "usage_entries": APPEND,
    "workers": READ,
}
"""Where the app login may do less than everything with its tenant's rows: history is appended to, runs are kept."""

SYSTEM = {
    "dispatcher_leader": WRITE,
    "limit_states": EVERYTHING,
    "refused_counts": READ,
    "refused_messages": READ,
    "run_events": APPEND,
    "run_leases": READ,
    "tenant_families": READ,
    "workers": {"SELECT", "DELETE"},
}
COLUMNS = {
    ("tenantry_app", "audit_entries", "INSERT"): {
        "tenant_id", "id", "actor_kind", "actor", "action", "target", "detail",
    },
    ("tenantry_app", "tenants", "UPDATE"): {"name", "timezone", "sso_only"},
    ("tenantry_app", "usage", "INSERT"): {"tenant_id", "period", "kind", "alarmed_at"},
    ("tenantry_app", "usage", "UPDATE"): {"alarmed_at"},
    ("tenantry_app", "users", "SELECT"): {"id", "email", "created_at"},
    ("tenantry_system", "tenants", "SELECT"): {
        "id", "slug", "name", "timezone", "plan", "suspended_at", "created_at", "changed",
    },
    ("tenantry_system", "limits", "SELECT"): {
        "tenant_id", "id", "kind", "amount", "per_seconds", "burst", "task", "queue", "concurrency_key",
    },
    ("tenantry_system", "pauses", "SELECT"): {"tenant_id", "task", "draining"},
    ("tenantry_system", "bulk_actions", "SELECT"): {"finished_at"},
    ("tenantry_system", "runs", "UPDATE"): {"state", "sequence", "fence", "released_at"},
    ("tenantry_system", "runs", "SELECT"): {
        "tenant_id", "id", "task", "queue", "priority", "rank", "state", "sequence", "attempt", "max_attempts", "fence",
        "crashes", "concurrency_key", "schedule_id", "nominal_at", "created_at", "available_at", "released_at",
        "started_at", "finished_at", "cancel_requested_at", "worker_seconds",
    },
}  # fmt: skip

DEFINERS = {
    "accept_invitation": {"tenantry_app"},
    "advance_bulk_action": {"tenantry_system"},
    "begin_erasure": {"tenantry_system"},
    "change_password": {"tenantry_app"},
    "bring_in": {"tenantry_app"},
    "assign_plan": {"tenantry_app"},
    "create_tenant": {"tenantry_system"},
    "delete_effects_of_no_run": {"tenantry_system"},
    "delete_ended_links": {"tenantry_system"},
    "delete_ended_logins": {"tenantry_system"},
    "delete_expired_keys": {"tenantry_system"},
    "delete_finished_bulk_actions": {"tenantry_system"},
    "drop_empty_order_partitions": {"tenantry_system"},
    "drop_ended_partitions": {"tenantry_system"},
    "end_backend": {"tenantry_app"},
    "end_tenant": {"tenantry_system"},
    "enroll_user": {"tenantry_system"},
    "ensure_order_partitions": {"tenantry_app", "tenantry_system"},
    "ensure_partitions": {"tenantry_system"},
    "erase_rows": {"tenantry_system"},
    "find_api_key": {"tenantry_app"},
    "find_invitation": {"tenantry_app"},
    "find_link": {"tenantry_app"},
    "find_login": {"tenantry_app"},
    "find_provider": {"tenantry_app"},
    "find_session": {"tenantry_app"},
    "fold_usage": {"tenantry_system"},
    "forget_person": set(),
    "installation_identity": {"tenantry_app"},
    "is_deserted": {"tenantry_system"},
    "lock_person": set(),
    "note_change_of_tenant": set(),
    "own_password": {"tenantry_app"},
    "prune_runs": {"tenantry_app"},
    "refuse_messages": {"tenantry_app"},
    "renew_leases": {"tenantry_app"},
    "rescue_runs": {"tenantry_system"},
    "resume_tenant": {"tenantry_system"},
    "seal_audit": {"tenantry_system"},
    "suspend_tenant": {"tenantry_system"},
    "tenant_rows": {"tenantry_system"},
    "reset_password": {"tenantry_app"},
    "sign_up": {"tenantry_app"},
    "tenants_of": {"tenantry_app"},
    "worker_gone": {"tenantry_app"},
    "worker_seen": {"tenantry_app"},
}
"""Every function that acts with the owner's rights, and who may call it."""


def test_no_login_has_a_power_over_the_server(installation: Installation) -> None:
    powers = installation.rows(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY (ARRAY['tenantry_owner', 'tenantry_app', 'tenantry_system'])"
        " AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)"
    )
    assert powers == []


def test_app_and_system_are_members_of_nothing_and_own_nothing(installation: Installation) -> None:
    logins = ["tenantry_app", "tenantry_system"]
    assert installation.rows("SELECT * FROM pg_auth_members WHERE member::regrole::text = ANY (%s)", logins) == []
    assert installation.rows("SELECT relname FROM pg_class WHERE relowner::regrole::text = ANY (%s)", logins) == []
    assert installation.rows("SELECT proname FROM pg_proc WHERE proowner::regrole::text = ANY (%s)", logins) == []


@pytest.mark.parametrize("power", ["TEMP", "CREATE"])
@pytest.mark.parametrize("login", ["tenantry_app", "tenantry_system"])
def test_the_logins_make_nothing_in_the_database(
    installation: Installation, template: Addresses, login: str, power: str
) -> None:
    made = template.app.rpartition("/")[2]
    assert installation.rows("SELECT has_database_privilege(%s, %s, %s)", login, made, power) == [(False,)]
    assert installation.rows("SELECT has_schema_privilege(%s, 'public', 'CREATE')", login) == [(False,)]


@pytest.mark.parametrize("who", ["the owner", "an administrator"])
def test_a_process_refuses_a_login_that_row_level_security_does_not_bind(
    installation: Installation, servers: Servers, who: str
) -> None:
    address = installation.addresses.owner if who == "the owner" else servers.admin_url
    with pytest.raises(Misconfigured, match="use tenantry_app"):
        roles.check(address)


def test_a_process_accepts_the_app_and_the_system_login(installation: Installation) -> None:
    for address in (installation.addresses.app, installation.addresses.system):
        roles.check(address)


def test_grants_on_whole_tables_are_those_listed(installation: Installation) -> None:
    granted: dict[tuple[str, str], set[str]] = defaultdict(set)
    for table, grantee, privilege in installation.rows("""
        SELECT c.relname, CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END, x.privilege_type
        FROM pg_class c, aclexplode(c.relacl) x
        WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition AND x.grantee <> c.relowner
    """):
        granted[(grantee, table)].add(privilege)
    tables = installation.rows(
        "SELECT DISTINCT table_name FROM information_schema.columns WHERE table_schema = 'public'"
        " AND column_name = 'tenant_id' AND table_name NOT IN (SELECT relname FROM pg_class WHERE relispartition)"
    )
    expected = {("tenantry_app", table): EVERYTHING for (table,) in tables}
    expected |= {("tenantry_app", table): privileges for table, privileges in APP.items()}
    expected |= {("tenantry_system", table): privileges for table, privileges in SYSTEM.items()}
    assert dict(granted) == expected


def test_grants_on_columns_are_those_listed(installation: Installation) -> None:
    granted: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for grantee, table, privilege, column in installation.rows("""
        SELECT x.grantee::regrole::text, c.relname, x.privilege_type, a.attname
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid, aclexplode(a.attacl) x
        WHERE c.relnamespace = 'public'::regnamespace AND NOT a.attisdropped
    """):
        granted[(grantee, table, privilege)].add(column)
    assert dict(granted) == COLUMNS


@pytest.mark.parametrize("column", ["args", "result", "error", "actor", "trace", "idempotency_key"])
def test_the_system_login_reads_no_payload(installation: Installation, column: str) -> None:
    connection = psycopg2.connect(installation.addresses.system)
    try:
        with connection.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(f"SELECT {column} FROM runs")
    finally:
        connection.close()


def test_the_app_login_reads_no_password(installation: Installation) -> None:
    connection = psycopg2.connect(installation.addresses.app)
    try:
        with connection.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("SELECT password_hash FROM users")
    finally:
        connection.close()


def test_nobody_has_a_grant_on_a_partition(installation: Installation) -> None:
    assert installation.rows("SELECT count(*) > 20 FROM pg_class WHERE relispartition") == [(True,)]
    granted = installation.rows("""
        SELECT c.relname, x.grantee::regrole FROM pg_class c, aclexplode(c.relacl) x
        WHERE c.relispartition AND x.grantee <> c.relowner
    """)
    assert granted == []


def test_functions_with_the_owners_rights_are_those_listed(installation: Installation) -> None:
    found = {
        name: set(grantees)
        for name, grantees in installation.rows("""
            SELECT p.proname, array(SELECT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END
                                    FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x
                                    WHERE x.grantee <> p.proowner)
            FROM pg_proc p WHERE p.prosecdef AND p.pronamespace = 'public'::regnamespace
        """)
    }
    assert found == DEFINERS


def test_functions_with_the_owners_rights_find_nobody_elses_objects(installation: Installation) -> None:
    paths = installation.rows(
        "SELECT proname FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace"
        " AND NOT coalesce(proconfig, '{}') @> ARRAY['search_path=public, pg_temp']"
    )
    assert paths == []


def test_no_function_that_touches_a_table_is_everybodys(installation: Installation) -> None:
    public = installation.rows("""
        SELECT p.proname FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x
        WHERE p.pronamespace = 'public'::regnamespace AND x.grantee = 0
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    """)
    assert public == [("first_id",)], "first_id turns a time into an id and reads nothing"
