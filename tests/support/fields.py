"""The fields of the schema, and the rules that its root fields carry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from strawberry.extensions.field_extension import FieldExtension
from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types.field import StrawberryField

from schema import permissions, root

E = TypeVar("E", bound=FieldExtension)
SCHEMA = root.build()
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


def every(*types: str) -> Iterator[tuple[str, StrawberryField]]:
    """The fields of these types, or of all, by type and name."""
    known = SCHEMA._schema.type_map
    for type_name in types or tuple(known):
        for field_name, field in getattr(known[type_name], "fields", {}).items():
            definition = field.extensions.get(GraphQLCoreConverter.DEFINITION_BACKREF)
            if isinstance(definition, StrawberryField):
                yield f"{type_name}.{field_name}", definition


ROOT = dict(every("Query", "Mutation", "Subscription"))


def extension(field: StrawberryField, kind: type[E]) -> E | None:
    """The extension of this kind that a field carries."""
    return next((found for found in field.extensions if isinstance(found, kind)), None)


def rule(name: str) -> permissions.Rule:
    """The rule of a root field."""
    found = extension(ROOT[name], permissions.Rule)
    assert found is not None, f"{name} has no rule"
    return found


def is_later(field: StrawberryField) -> bool:
    """Whether a field answers UNAVAILABLE."""
    return field.base_resolver is not None and getattr(field.base_resolver.wrapped_func, "is_later", False)
