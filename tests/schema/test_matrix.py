"""The printed table of permissions."""

from __future__ import annotations

from schema import matrix
from tests.support.fields import ROOT as FIELDS
from tests.support.folders import ROOT


def test_the_documentation_says_who_may_ask_for_what() -> None:
    table = matrix.table()
    assert (ROOT / "docs" / "permissions.md").read_text(encoding="utf-8").endswith(f"\n\n{table}")
    assert table.count("\n") == len(FIELDS) + 2
