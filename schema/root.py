"""The root of the graph, put together from what each module brings, and the schema's export."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import Any

import strawberry
from graphql import (
    GraphQLArgument,
    GraphQLError,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    Undefined,
    build_schema,
    lexicographic_sort_schema,
    print_schema,
)
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.name_converter import NameConverter
from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types import ExecutionContext, ExecutionResult
from strawberry.types.graphql import OperationType
from strawberry.utils.str_converters import to_camel_case

import schema.families
from schema import (
    audit,
    bulk_actions,
    catalogue,
    dead_letters,
    explanations,
    guards,
    keys,
    limits,
    operations,
    permissions,
    problems,
    runs,
    schedules,
    tenants,
    triggers,
    updates,
)
from schema.context import Info
from schema.errors import Masked
from schema.nodes import Node
from schema.scalars import SCALARS

_MODULES = (
    runs,
    explanations,
    dead_letters,
    catalogue,
    schedules,
    keys,
    limits,
    operations,
    audit,
    tenants,
    triggers,
    bulk_actions,
)


@strawberry.type(name="Query")
class _NodeQuery:
    @strawberry.field(extensions=[permissions.SIGNED_IN], description="Any object of the caller's tenant by its id.")
    async def node(self, info: Info, id: strawberry.ID) -> Node | None:
        kind, _, name = id.partition("_")
        match kind:
            case "run" if info.context.caller.may("runs:read"):
                return await runs.find(info, id)
            case "bulk" if info.context.caller.may("runs:read"):
                return await bulk_actions.find(info, id)
            case "dlg" if info.context.caller.may("runs:read"):
                return await dead_letters.find(info, id)
            case "task":
                return await catalogue.find_task(info, name)
            case "fam":
                return await catalogue.find_family(info, name)
            case "key" if info.context.caller.may("keys:manage"):
                return await keys.find(info, id)
            case "lim" if info.context.caller.may("tenant:read"):
                return await limits.find(info, id)
            case "aud" if info.context.caller.may("audit:read"):
                return await audit.find(info, id)
            case "ten":
                tenant = await tenants.read_tenant(info)
                return tenant if tenant.id == id else None
        return None


class _Names(NameConverter):
    """Derives each name once; strawberry asks for those of a field's arguments in every call."""

    def apply_naming_config(self, name: str) -> str:
        return _camel_case(name)


_camel_case = cache(to_camel_case)


class Schema(strawberry.Schema):
    """The schema, which leaves it to the masking to log what is worth a line."""

    async def execute(self, *args: Any, **options: Any) -> ExecutionResult:
        """Run a query or a mutation. A subscription is refused: it has no single answer."""
        allowed = options.get("allowed_operation_types") or OperationType
        options["allowed_operation_types"] = [kind for kind in allowed if kind is not OperationType.SUBSCRIPTION]
        return await super().execute(*args, **options)

    def process_errors(self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        """Every error passes the masking, which logs those that nobody expected."""


@cache
def build(*, introspection: bool = True) -> Schema:
    """The schema with every production extension.

    Args:
        introspection: whether clients may read the schema from the service, and are told of names that are near.
    """
    families = _families()
    query = _merge("Query", _NodeQuery, *_parts("Query", *_MODULES, *families))
    mutation = _merge("Mutation", *_parts("Mutation", *_MODULES, *families))
    built = Schema(
        query=query,
        mutation=mutation,
        subscription=updates.Subscription,
        types=problems.TYPES,
        extensions=[Masked, guards.reader(introspection=introspection)],
        config=StrawberryConfig(
            scalar_map=SCALARS, name_converter=_Names(), disable_field_suggestions=not introspection
        ),
    )
    _complete(built._schema)
    return built


def export() -> str:
    """The schema in the schema definition language, sorted so that its changes read well."""
    # Sorted as plain definitions: a sorted copy of the schema itself loses how our enums and unions resolve.
    return print_schema(lexicographic_sort_schema(build_schema(print_schema(build()._schema)))) + "\n"


def _families() -> list[Any]:
    return [
        importlib.import_module(f"schema.families.{module.name}")
        for module in pkgutil.iter_modules(schema.families.__path__)
    ]


def _parts(name: str, *modules: Any) -> list[type]:
    return [getattr(module, name) for module in modules if hasattr(module, name)]


def _merge(name: str, *parts: type) -> type:
    return strawberry.type(type(name, parts, {}))


def _complete(built: GraphQLSchema) -> None:
    """Say in the schema what strawberry keeps to itself: which inputs are one of, and which arguments have no default.

    An argument that may be left out has no default in the contract; Python's None would become one.
    """
    for known in built.type_map.values():
        if isinstance(known, GraphQLInputObjectType):
            known.is_one_of = known.extensions[GraphQLCoreConverter.DEFINITION_BACKREF].is_one_of
            _drop_null_defaults(known.fields.values())
        elif isinstance(known, GraphQLObjectType | GraphQLInterfaceType):
            for field in known.fields.values():
                _drop_null_defaults(field.args.values())


def _drop_null_defaults(given: Iterable[GraphQLArgument | GraphQLInputField]) -> None:
    for one in given:
        if one.default_value is None:
            one.default_value = Undefined
