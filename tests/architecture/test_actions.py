"""What the audit log can tell: one list, which the code, the SQL functions and the documentation keep to."""

from __future__ import annotations

import re
from typing import get_args

from tenants import audit
from tests.support import sources
from tests.support.folders import ROOT

ACTIONS = get_args(audit.Action)
VERBS = {
    "accept", "alarm", "assign", "cancel", "close", "create", "drain", "enable", "erase", "export", "open", "pause",
    "refuse", "remove", "require", "reset", "resume", "retry", "reuse", "revoke", "rotate", "set", "suspend",
}  # fmt: skip
BY_FUNCTIONS = {
    "member.set", "password.reset", "password.set", "plan.assign", "quota.alarm", "tenant.create", "tenant.erase",
    "tenant.resume", "tenant.suspend",
}  # fmt: skip
"""What SQL functions write. mypy holds Python to the list."""


def test_actions_are_nouns_with_one_of_these_verbs() -> None:
    assert list(ACTIONS) == sorted(set(ACTIONS))
    assert {action.partition(".")[2] for action in ACTIONS} == VERBS


def test_functions_write_actions_of_the_list() -> None:
    written = {
        found
        for folder in ("tasks", "tenants")
        for path in (ROOT / folder).rglob("*.sql")
        for found in re.findall(r"'([a-z]+\.[a-z]+)'", path.read_text(encoding="utf-8"))
        if found.partition(".")[2] in VERBS
    }
    assert written == BY_FUNCTIONS
    assert written <= set(ACTIONS)


def test_every_action_is_told_somewhere() -> None:
    named = {
        str(node.value)
        for path in sources.modules("api", "tasks", "tenants")
        if sources.name(path) != "tenants/audit.py"
        for node in sources.texts(path)
    }
    assert set(ACTIONS) - named - BY_FUNCTIONS == set()


def test_the_documentation_has_them_all() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \|", (ROOT / "docs" / "audit.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == list(ACTIONS)
