"""Every field that needs a guard has one, and the fields that are not there yet are known by name."""

from __future__ import annotations

import pytest

from schema import permissions
from schema.errors import AsProblem
from tests.support import fields
from tests.support.fields import LATER, ROOT


@pytest.mark.parametrize("name", ROOT)
def test_a_root_field_has_a_rule(name: str) -> None:
    assert fields.extension(ROOT[name], permissions.Rule) is not None


@pytest.mark.parametrize("name", [name for name in ROOT if name.startswith("Mutation.") and name not in LATER])
def test_a_mutation_changes_only_for_whom_it_may_and_answers_problems_as_data(name: str) -> None:
    rule = fields.rule(name)
    assert rule.changes, "a suspended tenant must not get through"
    kinds = [type(extension) for extension in ROOT[name].extensions]
    assert kinds.index(AsProblem) > kinds.index(type(rule)), "the last is outermost: a refusal is a problem too"


def test_what_is_for_administrators_is_hidden_from_others() -> None:
    hidden = {name for name, field in fields.every() if fields.extension(field, permissions.Hidden)}
    assert hidden == {"RunError.traceback"}


def test_no_field_becomes_unavailable_again() -> None:
    later = {name for name, field in fields.every() if fields.is_later(field)}
    assert later - LATER == set(), "a field was taken away"
    assert LATER - later == set(), "a field has come: take its name off the list"
