"""Up, down, up again; on the oldest PostgreSQL that is supported and on the newest, with and without pgvector."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Literal

import psycopg2
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import make_url

from api import embedded
from tenants import roles
from tenants.roles import Addresses, Passwords
from tests.support.folders import ROOT
from tests.support.logins import Login

OLDEST = 15
_PASSWORDS = Passwords(owner="owner-for-tests", app="app-for-tests", system="system-for-tests")
_KINDS: tuple[Literal["postgres"]] = ("postgres",)
_SHAPE = """
SELECT 'column', c.relname || '.' || a.attname,
       format_type(a.atttypid, a.atttypmod) || a.attnotnull || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
  WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT 'policy', tablename || '.' || policyname, roles::text || cmd || coalesce(qual, '') ||
  coalesce(with_check, '') FROM pg_policies WHERE schemaname = 'public'
UNION ALL SELECT 'grant', relname, coalesce(relacl::text, '') FROM pg_class
  WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
UNION ALL SELECT 'function', p.oid::regprocedure::text, md5(p.prosrc) || coalesce(p.proacl::text, '') FROM pg_proc p
  WHERE p.pronamespace = 'public'::regnamespace
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
"""
Fresh = Callable[[str], Addresses]


@pytest.fixture(scope="module", params=["any", "wheels"])
def admin_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The administrator's address on this machine's own PostgreSQL, if it has one, and on the embedded one."""
    source: Literal["any", "wheels"] = request.param
    folder = tmp_path_factory.mktemp("servers")
    with embedded.start(folder, kinds=_KINDS, durable=False, source=source) as servers:
        yield servers.admin_url


@pytest.fixture
def fresh(admin_url: str) -> Fresh:
    """Makes empty databases with their logins."""
    return lambda name: roles.create(admin_url, _PASSWORDS, database=name)


def _alembic(addresses: Addresses) -> Config:
    config = Config(str(ROOT / "alembic.ini"), cmd_opts=Namespace(x=[f"url={addresses.owner}"]))
    config.set_main_option("script_location", str(ROOT / "migrations"))
    return config


def _shape(addresses: Addresses) -> set[tuple[str, str, str]]:
    with closing(psycopg2.connect(addresses.owner)) as connection, connection.cursor() as cursor:
        cursor.execute(_SHAPE)
        return {(kind, name, shape) for kind, name, shape in cursor.fetchall()}


def test_up_down_and_up_again_gives_the_same_and_matches_the_models(fresh: Fresh) -> None:
    addresses = fresh("round_trip")
    config = _alembic(addresses)
    command.upgrade(config, "head")
    command.check(config)
    first = _shape(addresses)
    assert len([name for kind, name, _ in first if kind == "policy"]) > 30
    command.downgrade(config, "base")
    assert {name.partition(".")[0] for _, name, _ in _shape(addresses)} <= {
        "alembic_version",
        "alembic_version_pkc",
    }
    command.upgrade(config, "head")
    assert _shape(addresses) == first


def test_each_step_down_can_be_taken_up_again(fresh: Fresh) -> None:
    addresses = fresh("single_steps")
    config = _alembic(addresses)
    command.upgrade(config, "head")
    whole = _shape(addresses)
    for _ in ScriptDirectory.from_config(config).walk_revisions():
        command.downgrade(config, "-1")
        command.upgrade(config, "+1")
        assert len(_shape(addresses)) <= len(whole)
        command.downgrade(config, "-1")
    command.upgrade(config, "head")
    assert _shape(addresses) == whole


def test_functions_that_had_another_form_are_replaced(fresh: Fresh) -> None:
    addresses = fresh("other_forms")
    config = _alembic(addresses)
    command.upgrade(config, "head")
    whole = _shape(addresses)
    command.downgrade(config, "0008")
    owner = Login(addresses.owner)
    [(result,)] = owner.rows("SELECT pg_get_function_result('claim_run'::regproc)")
    [(arguments,)] = owner.rows("SELECT pg_get_function_identity_arguments('claim_run'::regproc)")
    owner.rows("DROP FUNCTION claim_run")
    for given in (arguments, "integer"):
        owner.rows(f"CREATE FUNCTION claim_run({given}) RETURNS text LANGUAGE sql AS 'SELECT NULL'")
    owner.close()
    assert result != "text"
    command.upgrade(config, "head")
    assert _shape(addresses) == whole


def test_nothing_needs_pgvector(fresh: Fresh, admin_url: str) -> None:
    addresses = fresh("without_vector")
    inside = Login(make_url(admin_url).set(database="without_vector").render_as_string(hide_password=False))
    inside.rows("DROP EXTENSION IF EXISTS vector")
    assert inside.rows("SELECT FROM pg_extension WHERE extname = 'vector'") == []
    inside.close()
    command.upgrade(_alembic(addresses), "head")
    app = Login(addresses.app)
    assert app.rows("SELECT id FROM runs") == []
    app.close()


def test_the_servers_are_as_new_and_as_old_as_promised(fresh: Fresh, request: pytest.FixtureRequest) -> None:
    login = Login(fresh("versions").app)
    major = int(login.value("SHOW server_version_num")) // 10_000
    login.close()
    assert major >= (18 if request.node.callspec.params["admin_url"] == "wheels" else OLDEST)


def test_every_migration_waits_briefly_for_locks() -> None:
    versions = sorted((ROOT / "migrations/versions").glob("0*.py"))
    assert versions
    for path in versions:
        assert path.read_text(encoding="utf-8").count("SET LOCAL lock_timeout") == 2, path.name


def test_the_revisions_form_one_line() -> None:
    script = ScriptDirectory(str(ROOT / "migrations"))
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert script.get_bases() == ["0001"]
    assert len(script.get_heads()) == 1
    assert revisions == sorted(revisions, reverse=True)
