"""Every table of every tenant stands behind the same wall, and nothing leads around it."""

from __future__ import annotations

import re

import pytest

from tenants import system
from tests.support.installations import Installation

CONDITION = (
    "({column} = ( SELECT (NULLIF(current_setting('app.tenant_id'::text, true), ''::text))::uuid AS \"nullif\"))"
)

POLICIES_OF_NO_TENANT = {
    "alembic_version": set(),
    "dispatcher_leader": {"owner", "readable", "system"},
    "plans": {"operators", "owner", "readable"},
    "refused_counts": {"owner", "readable", "system"},
    "refused_messages": {"owner", "system"},
    "tenants": {"owner", "system", "tenant"},
    "users": {"owner", "tenant"},
    "workers": {"owner", "readable", "system"},
}
"""Tables without a `tenant_id`, and the policies each has. `tenants` holds the tenant's own row."""

UNIQUE_ACROSS_TENANTS = {"uq_api_keys_secret_hash"}
"""A key is found by its hash before its tenant is known; being one of 178 random bits, it tells nobody anything."""

REFERENCES_WITHOUT_TENANT = {"fk_memberships_user_id"}
"""A person may be a member of several tenants."""


@pytest.fixture(scope="module")
def tables(installation: Installation) -> dict[str, bool]:
    """Every table but partitions, and whether it has a `tenant_id`."""
    return dict(
        installation.rows("""
            SELECT c.relname, EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id')
            FROM pg_class c
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        """)
    )


def test_every_table_is_either_a_tenants_or_listed(tables: dict[str, bool]) -> None:
    assert {name for name, of_tenant in tables.items() if not of_tenant} == set(POLICIES_OF_NO_TENANT)
    assert len([name for name, of_tenant in tables.items() if of_tenant]) >= 20


def test_row_level_security_is_enabled_and_forced_everywhere(
    installation: Installation, tables: dict[str, bool]
) -> None:
    open_tables = installation.rows("""
        SELECT relname FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
          AND NOT (relrowsecurity AND relforcerowsecurity) AND relname <> 'alembic_version'
    """)
    assert open_tables == []


def test_a_tenants_table_has_the_one_policy_for_the_app_login(
    installation: Installation, tables: dict[str, bool]
) -> None:
    policies = {
        table: (permissive, command, using, check)
        for table, permissive, command, using, check in installation.rows(
            "SELECT tablename, permissive, cmd, qual, with_check FROM pg_policies"
            " WHERE schemaname = 'public' AND 'tenantry_app' = ANY (roles) AND policyname = 'tenant'"
        )
    }
    expected = {table: "tenant_id" for table, of_tenant in tables.items() if of_tenant} | {"tenants": "id"}
    for table, column in expected.items():
        condition = CONDITION.format(column=column)
        assert policies[table] == ("PERMISSIVE", "ALL", condition, condition), table
    assert set(policies) == {*expected, "users"}


def test_the_app_login_has_no_second_policy_on_a_tenants_table(
    installation: Installation, tables: dict[str, bool]
) -> None:
    others = installation.rows(
        "SELECT tablename, policyname FROM pg_policies WHERE schemaname = 'public'"
        " AND roles && ARRAY['tenantry_app', 'public']::name[] AND policyname <> 'tenant'"
    )
    assert {(table, policy) for table, policy in others} == {
        (table, "readable") for table, policies in POLICIES_OF_NO_TENANT.items() if "readable" in policies
    } | {("plans", "operators")}


def test_plans_are_changed_from_the_operators_tenant_only(installation: Installation) -> None:
    [(using, check)] = installation.rows("SELECT qual, with_check FROM pg_policies WHERE policyname = 'operators'")
    assert using == check
    assert using.startswith("(( SELECT (NULLIF(current_setting('app.tenant_id'::text, true), ''::text))::uuid")
    assert using.endswith(" = operators())")
    assert installation.rows("SELECT operators()::text, id::text FROM tenants WHERE slug = '_operator'") == [
        (str(system.OPERATORS_ID),) * 2
    ]


def test_tables_of_no_tenant_have_the_policies_listed_and_no_others(installation: Installation) -> None:
    found = installation.rows(
        "SELECT tablename, policyname FROM pg_policies WHERE schemaname = 'public' AND tablename = ANY (%s)",
        list(POLICIES_OF_NO_TENANT),
    )
    assert {(table, policy) for table, policy in found} == {
        (table, policy) for table, policies in POLICIES_OF_NO_TENANT.items() for policy in policies
    }


def test_what_anybody_may_read_can_only_be_read(installation: Installation) -> None:
    commands = installation.rows("SELECT DISTINCT cmd FROM pg_policies WHERE policyname = 'readable'")
    assert commands == [("SELECT",)]


def test_a_tenants_key_begins_with_the_tenant(installation: Installation, tables: dict[str, bool]) -> None:
    indexes = installation.rows("""
        SELECT i.relname, c.relname, a.attname
        FROM pg_index x
        JOIN pg_class i ON i.oid = x.indexrelid
        JOIN pg_class c ON c.oid = x.indrelid
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = x.indkey[0]
        WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition AND x.indisunique
    """)
    wrong = {index for index, table, first in indexes if tables[table] and first != "tenant_id"}
    assert wrong == UNIQUE_ACROSS_TENANTS
    assert {table for _, table, first in indexes if first == "tenant_id"} >= {
        table for table, of_tenant in tables.items() if of_tenant
    }


def test_a_reference_between_tenants_tables_carries_the_tenant(
    installation: Installation, tables: dict[str, bool]
) -> None:
    references = installation.rows("""
        SELECT k.conname, k.conrelid::regclass::text, k.confrelid::regclass::text,
               (SELECT array_agg(a.attname::text ORDER BY u.place)
                FROM unnest(k.conkey) WITH ORDINALITY u(number, place)
                JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number),
               (SELECT array_agg(a.attname::text ORDER BY u.place)
                FROM unnest(k.confkey) WITH ORDINALITY u(number, place)
                JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.number)
        FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
        WHERE k.contype = 'f' AND c.relnamespace = 'public'::regnamespace AND NOT c.relispartition
          AND k.conparentid = 0
    """)
    assert references
    for name, table, target, columns, targets in references:
        if tables[table] and target == "tenants":
            assert (columns, targets) == (["tenant_id"], ["id"]), name
        elif tables[table] and name not in REFERENCES_WITHOUT_TENANT:
            assert "tenant_id" in columns, name
            assert targets[columns.index("tenant_id")] == "tenant_id", name


def test_nothing_that_outlives_a_run_refers_to_it(installation: Installation) -> None:
    assert installation.rows("SELECT conname FROM pg_constraint WHERE confrelid = 'runs'::regclass") == []


def test_there_is_no_view_that_looks_with_its_owners_eyes(installation: Installation) -> None:
    views = installation.rows("""
        SELECT relname, relkind, coalesce(array_to_string(reloptions, ','), '') FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('v', 'm')
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = pg_class.oid AND d.deptype = 'e')
    """)
    for name, kind, options in views:
        assert kind == "v", f"{name} is a materialised view, which ignores row-level security"
        assert "security_invoker=true" in options, name


def test_the_tenant_is_the_default_of_every_tenant_column(installation: Installation, tables: dict[str, bool]) -> None:
    defaults = dict(
        installation.rows("""
            SELECT c.relname, pg_get_expr(d.adbin, d.adrelid)
            FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND a.attnotnull
            LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        """)
    )
    expected = "NULLIFcurrent_setting'app.tenant_id', true, ''::uuid"
    for table, of_tenant in tables.items():
        if of_tenant:
            assert re.sub(r"::text|[()]", "", defaults[table]) == expected, table
