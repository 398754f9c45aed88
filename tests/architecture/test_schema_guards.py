"""Every field that needs a guard has one, and the fields that are not there yet are known by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from strawberry.extensions.field_extension import FieldExtension
from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types.field import StrawberryField

from schema import permissions, root
from schema.errors import AsProblem

LATER = {
    "Mutation.backfillSchedule",
    "Mutation.createSchedule",
    "Mutation.deleteSchedule",
    "Mutation.disableFamily",
    "Mutation.enableFamily",
    "Mutation.pauseSchedule",
    "Mutation.resumeSchedule",
    "Mutation.triggerSchedule",
    "Mutation.updateSchedule",
    "Query.metrics",
    "Query.schedule",
    "Query.schedulePreview",
    "Query.schedules",
    "Schedule.ticks",
}
"""Fields of the contract that answer UNAVAILABLE. This list only shrinks."""


def _fields(*names: str) -> Iterator[tuple[str, StrawberryField]]:
    built = root.build()._schema
    for type_name in names or tuple(built.type_map):
        for field_name, field in getattr(built.type_map[type_name], "fields", {}).items():
            definition = field.extensions.get(GraphQLCoreConverter.DEFINITION_BACKREF)
            if isinstance(definition, StrawberryField):
                yield f"{type_name}.{field_name}", definition


ROOT = dict(_fields("Query", "Mutation", "Subscription"))


def _extension(field: StrawberryField, kind: type[FieldExtension]) -> FieldExtension | None:
    return next((extension for extension in field.extensions if isinstance(extension, kind)), None)


@pytest.mark.parametrize("name", ROOT)
def test_a_root_field_has_a_rule(name: str) -> None:
    assert _extension(ROOT[name], permissions.Rule) is not None


@pytest.mark.parametrize("name", [name for name in ROOT if name.startswith("Mutation.") and name not in LATER])
def test_a_mutation_changes_only_for_whom_it_may_and_answers_problems_as_data(name: str) -> None:
    rule = _extension(ROOT[name], permissions.Rule)
    assert isinstance(rule, permissions.Rule)
    assert rule.changes, "a suspended tenant must not get through"
    kinds = [type(extension) for extension in ROOT[name].extensions]
    assert kinds.index(AsProblem) > kinds.index(type(rule)), "the last is outermost: a refusal is a problem too"


def test_what_is_for_administrators_is_hidden_from_others() -> None:
    hidden = {name for name, field in _fields() if _extension(field, permissions.Hidden)}
    assert hidden == {"RunError.traceback"}


def test_no_field_becomes_unavailable_again() -> None:
    later = {
        name
        for name, field in _fields()
        if field.base_resolver is not None and getattr(field.base_resolver.wrapped_func, "is_later", False)
    }
    assert later - LATER == set(), "a field was taken away"
    assert LATER - later == set(), "a field has come: take its name off the list"
