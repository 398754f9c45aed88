"""Who commits, who names a tenant, who makes a Redis key, who looks across tenants: each in the places listed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.support import sources
from tests.support.folders import ROOT

COMMITTERS = {
    "tasks/engine/calls.py",
    "tasks/engine/context.py",
    "tasks/engine/execute.py",
    "tenants/db.py",
    "tenants/postgres.py",
}
"""Where a session is opened and closed again, but for the edge. Services never commit: whoever opened it does."""

KEY_MAKERS = {"tenants/names.py"}
TENANT_SETTERS = {"tenants/db.py"}
CROSSERS = {
    "api/auth.py",
    "api/commands/lifecycle.py",
    "api/commands/plans.py",
    "api/commands/tenants.py",
    "api/demo.py",
    "api/installation.py",
    "api/stack.py",
    "tasks/engine/calls.py",
}
"""Who uses the cross-tenant door."""

_STRINGS = re.compile(r"^(t:|sys:)")
_PLAIN_SET = re.compile(r"\bSET\s+(SESSION\s+|LOCAL\s+)?[\"']?app\.tenant_id", re.IGNORECASE)
_SESSION_WIDE = re.compile(r"set_config\(\s*'app\.tenant_id'\s*,[^,]+,\s*false", re.IGNORECASE)


def _callers(method: str, *packages: str) -> set[str]:
    return {
        sources.name(path)
        for path in sources.modules(*packages)
        for node in ast.walk(sources.tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method
    }


def test_only_the_edges_commit() -> None:
    assert _callers("commit", "schema", "tasks", "tenants") == COMMITTERS


def test_no_service_rolls_back() -> None:
    assert {name for name in _callers("rollback") if "/families/" in name} == set()


def test_redis_keys_are_made_in_one_module() -> None:
    makers = {
        sources.name(path)
        for path in sources.modules("api", "schema", "tasks", "tenants")
        for node in sources.texts(path)
        if _STRINGS.match(str(node.value))
    }
    assert makers == KEY_MAKERS


def test_the_tenant_is_set_for_one_transaction_only() -> None:
    for path in [*sources.modules(), *_sql()]:
        content = path.read_text(encoding="utf-8")
        assert not _PLAIN_SET.search(content), sources.name(path)
        assert not _SESSION_WIDE.search(content), sources.name(path)


def test_python_sets_the_tenant_in_one_place() -> None:
    setters = {
        sources.name(path)
        for path in sources.modules("api", "schema", "tasks", "tenants")
        for node in sources.texts(path)
        if "enter_tenant(" in str(node.value) or "set_config('app.tenant_id'" in str(node.value)
    }
    assert setters == TENANT_SETTERS


def test_functions_set_the_tenant_for_their_transaction_from_their_argument() -> None:
    calls = [
        call
        for path in _sql()
        for call in re.findall(r"set_config\('app\.tenant_id'[^)]*\)", path.read_text(encoding="utf-8"))
    ]
    assert calls
    assert set(calls) == {"set_config('app.tenant_id', p_tenant::text, true)"}


def test_the_cross_tenant_door_is_used_where_it_says() -> None:
    users = {
        sources.name(path)
        for path in sources.modules("api", "schema", "tasks", "tenants")
        for node in ast.walk(sources.tree(path))
        if (isinstance(node, ast.ImportFrom) and node.module == "tenants" and _names(node, "system"))
        or (isinstance(node, ast.ImportFrom) and node.module == "tenants.system")
        or (isinstance(node, ast.Import) and any(alias.name == "tenants.system" for alias in node.names))
    }
    assert users == CROSSERS


def test_domain_code_never_names_the_tenant() -> None:
    """No value for it and no argument: a family's service leaves the tenant to the session."""
    for path in sources.modules("tasks/families"):
        if "/service" in sources.name(path):
            named = [
                node.lineno
                for node in ast.walk(sources.tree(path))
                if isinstance(node, ast.keyword | ast.arg) and node.arg == "tenant_id"
            ]
            assert named == [], sources.name(path)


def _names(node: ast.ImportFrom, name: str) -> bool:
    return any(alias.name == name for alias in node.names)


def _sql() -> list[Path]:
    return [path for folder in ("tasks", "tenants") for path in sorted((ROOT / folder).rglob("*.sql"))]
