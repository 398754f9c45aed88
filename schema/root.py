"""The root of the graph, put together from what each module brings, and the schema's export."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from typing import Any

import strawberry
from graphql import ExecutionResult as GraphQLExecutionResult
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
    credentials,
    dead_letters,
    explanations,
    guards,
    invitations,
    keys,
    limits,
    member_roles,
    members,
    operations,
    permissions,
    plans,
    problems,
    providers,
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
from tenants.errors import Unavailable

_MODULES = (
    runs,
    explanations,
    dead_letters,
    catalogue,
    schedules,
    keys,
    members,
    member_roles,
    invitations,
    limits,
    credentials,
    operations,
    plans,
    audit,
    tenants,
    providers,
    triggers,
    bulk_actions,
)


async def _find_task(info: Info, id: str) -> Node | None:
    return await catalogue.find_task(info, id.removeprefix("task_"))


async def _find_family(info: Info, id: str) -> Node | None:
    return await catalogue.find_family(info, id.removeprefix("fam_"))


async def _find_tenant(info: Info, id: str) -> Node | None:
    tenant = await tenants.read_tenant(info)
    return tenant if tenant.id == id else None


_NODES: dict[str, tuple[str | None, Callable[[Info, str], Awaitable[Node | None]]]] = {
    "run": ("runs:read", runs.find),
    "bulk": ("runs:read", bulk_actions.find),
    "dlg": ("runs:read", dead_letters.find),
    "task": (None, _find_task),
    "fam": (None, _find_family),
    "key": ("keys:manage", keys.find),
    "usr": ("members:manage", members.find),
    "ses": (None, members.find_login),
    "rol": ("members:manage", member_roles.find),
    "inv": ("members:manage", invitations.find),
    "lim": ("tenant:read", limits.find),
    "aud": ("audit:read", audit.find),
    "ten": (None, _find_tenant),
}
"""What an id begins with: the scope that its object needs, None for any, and how it is found."""


@strawberry.type(name="Query")
class _NodeQuery:
    @strawberry.field(extensions=[permissions.SIGNED_IN], description="Any object of the caller's tenant by its id.")
    async def node(self, info: Info, id: strawberry.ID) -> Node | None:
        scope, find = _NODES.get(id.partition("_")[0], (None, None))
        if find is None or (scope is not None and not info.context.caller.may(scope)):
            return None
        return await find(info, id)


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

    async def _execute_operation(self, execution_context: ExecutionContext, *rest: Any) -> Any:
        """Run an operation for as long as one may take; a subscription goes another way."""
        try:
            async with asyncio.timeout(execution_context.context.settings.api.operation_seconds):
                return await super()._execute_operation(execution_context, *rest)
        except TimeoutError:
            late = Unavailable("This took too long, and was ended: ask for less at once.", retry_after_seconds=1)
            errors = [GraphQLError(late.message, original_error=late)]
            execution_context.result = GraphQLExecutionResult(data=None, errors=errors)
            return execution_context.result

    def _get_custom_context_kwargs(self, *args: Any, **options: Any) -> dict[str, Any]:
        """How variables are checked: to the first errors, without what is near in the schema where that is hidden."""
        return {
            **super()._get_custom_context_kwargs(*args, **options),
            "max_coercion_errors": guards.ERRORS,
            "hide_suggestions": self.config.disable_field_suggestions,
        }

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
