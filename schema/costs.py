"""What an operation costs in points: known before it runs, corrected by what it has found.

An object costs one point, a plain value in it a tenth, a change ten. A list counts as many objects as its page may
have. After Shopify's calculated query costs and GitHub's node limit.

Sources: https://shopify.dev/docs/api/usage/limits,
https://docs.github.com/graphql/overview/rate-limits-and-query-limits-for-the-graphql-api
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLArgument,
    GraphQLField,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    NamedTypeNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    ValueNode,
    VariableNode,
    get_named_type,
    get_nullable_type,
    is_leaf_type,
    is_list_type,
)

from tenants import pages

MOST = 20_000
"""The most that one operation may cost."""
OBJECT = 1.0
VALUE = 0.1
CHANGE = 10.0
_WEIGHTS = {
    "Query.__schema": 200.0,
    "Query.__type": 20.0,
    "Query.explainRun": 10.0,
    "Query.metrics": 50.0,
    "Query.salesDashboard": 20.0,
    "RunConnection.totalCount": 20.0,
}
"""What costs more to find than to show. Changes and subscriptions are weighed as such."""
_SIZES = {"Query.families": 20, "FamilyStatus.tasks": 50, "InvalidInput.issues": 5, "Tenant.pauses": 20}
"""How many objects a list without pages has, where that is not `_LIST`."""
_LIST = 100
_PAGE = 50
"""The largest page of a field that is asked without a number."""
_PAGES = ("first", "last", "count")
TOKENS = 2000
"""The most that a text may have."""
REFUSAL = 10
"""What it costs to ask for what is refused."""
_CHARACTERS = 50
"""How many cost as much to read as a token does."""

Variables = Mapping[str, Any]


class _Amount(NamedTuple):
    """How many there may be: a number, or what a variable says."""

    number: int
    variable: str | None = None

    def read(self, variables: Variables) -> int:
        if self.variable is None or self.variable not in variables:
            return self.number
        match variables[self.variable]:
            case bool():
                return self.number
            case int(asked) | float(asked):
                return int(max(0, min(asked, pages.MOST)))
            case list(given):
                return len(given)
        return max(self.number, _PAGE)  # Null, for which a field takes a number of its own.


_ONE = _Amount(1)


@dataclass(slots=True)
class _Plan:
    """What one object costs: itself with its plain values, and the fields below that are objects."""

    own: float = OBJECT
    parts: dict[str, _Part] = field(default_factory=dict)

    def asked(self, variables: Variables) -> float:
        """At worst, one object of these."""
        total = self.own
        for part in self.parts.values():
            most = max(amount.read(variables) for amount in part.amounts)
            total += part.weigh(variables) + most * part.plan.asked(variables)
        return total

    def found(self, shown: Mapping[str, Any], variables: Variables) -> float:
        """In truth, for an object that was answered."""
        total = self.own
        for key, part in self.parts.items():
            total += part.weigh(variables)
            inner = shown.get(key)
            for each in inner if isinstance(inner, list) else (inner,):
                if each is not None:
                    total += part.plan.found(each, variables)
        return total

    def varies(self) -> bool:
        return any(
            part.plan.varies() or any(amount.variable for amount in (*part.amounts, *part.given))
            for part in self.parts.values()
        )


@dataclass(slots=True)
class _Part:
    """A field that is an object or a list of them, under one name of the answer.

    Args:
        weight: what it costs to find.
        amounts: how many objects it may be; the largest counts.
        given: how many things are handed in, of each list of them.
    """

    weight: float
    amounts: list[_Amount] = field(default_factory=list)
    given: list[_Amount] = field(default_factory=list)
    plan: _Plan = field(default_factory=_Plan)

    def weigh(self, variables: Variables) -> float:
        return self.weight + sum(amount.read(variables) for amount in self.given) if self.given else self.weight


class Cost:
    """The cost of one operation of a document.

    Args:
        streams: whether it is a subscription.
    """

    def __init__(self, plan: _Plan, *, streams: bool) -> None:
        self.streams = streams
        self._plan = plan
        self._fixed = None if plan.varies() else _whole(plan.asked({}))

    def asked(self, variables: Variables | None) -> int:
        """Points at worst, before it runs."""
        return _whole(self._plan.asked(variables or {})) if self._fixed is None else self._fixed

    def found(self, data: Mapping[str, Any], variables: Variables | None) -> int:
        """Points in truth, by the data it has answered."""
        return _whole(self._plan.found(data, variables or {}))


def of(schema: GraphQLSchema, document: DocumentNode) -> dict[str | None, Cost]:
    """The cost of each operation of a valid document, by its name; a single one also stands under None."""
    fragments = {
        definition.name.value: definition
        for definition in document.definitions
        if isinstance(definition, FragmentDefinitionNode)
    }
    found: dict[str | None, Cost] = {}
    for operation in document.definitions:
        if isinstance(operation, OperationDefinitionNode):
            plan = _Plan(own=0.0)
            reader = _Reader(schema, fragments, operation)
            reader.add(plan, operation.selection_set, schema.get_root_type(operation.operation), ())
            cost = found[None] = Cost(plan, streams=operation.operation is OperationType.SUBSCRIPTION)
            if operation.name is not None:
                found[operation.name.value] = cost
    return found


def reading(text: str, tokens: int | None = None) -> int:
    """What it costs to read a text that is new: a point for each token and for each fifty characters.

    Args:
        tokens: how many there are; as long as that is not known, as many as may be.
    """
    most = min(len(text), TOKENS) if tokens is None else tokens
    return most + math.ceil(len(text) / _CHARACTERS)


class _Reader:
    """Makes the plan of an operation out of its selections."""

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: Mapping[str, FragmentDefinitionNode],
        operation: OperationDefinitionNode,
    ) -> None:
        self._schema = schema
        self._fragments = fragments
        self._roots = {schema.mutation_type, schema.subscription_type}
        self._defaults = {
            definition.variable.name.value: definition.default_value
            for definition in operation.variable_definitions or ()
        }

    def add(self, plan: _Plan, selection: SelectionSetNode, parent: Any, page: Sequence[_Amount]) -> None:
        """Add a selection's fields to a plan.

        Args:
            parent: their type.
            page: how many objects a list has that is a part of a page; empty outside of one.
        """
        for node in selection.selections:
            if isinstance(node, FieldNode):
                self._add_field(plan, node, parent, page)
            elif isinstance(node, FragmentSpreadNode):
                fragment = self._fragments[node.name.value]
                self.add(plan, fragment.selection_set, self._type(fragment.type_condition, parent), page)
            else:
                inline = cast("InlineFragmentNode", node)
                self.add(plan, inline.selection_set, self._type(inline.type_condition, parent), page)

    def _add_field(self, plan: _Plan, node: FieldNode, parent: Any, page: Sequence[_Amount]) -> None:
        name = f"{parent.name}.{node.name.value}"
        known = _WEIGHTS.get(name)
        definition: GraphQLField | None = parent.fields.get(node.name.value) if hasattr(parent, "fields") else None
        if node.selection_set is None or definition is None:  # Without a definition: introspection, as deep as it is.
            plan.own += known or VALUE
            return
        key = node.name.value if node.alias is None else node.alias.value
        part = plan.parts.get(key)
        if part is None:
            part = plan.parts[key] = _Part(known or (CHANGE if parent in self._roots else 0.0))
        pages_asked, given = self._amounts(node, definition)
        asked = pages_asked or given
        many = is_list_type(get_nullable_type(definition.type))
        part.amounts += (asked or page or [_Amount(_SIZES.get(name, _LIST))]) if many else [_ONE]
        part.given += given
        self.add(part.plan, node.selection_set, get_named_type(definition.type), asked)

    def _amounts(self, node: FieldNode, definition: GraphQLField) -> tuple[list[_Amount], list[_Amount]]:
        """How many objects a field asks for, and how many it hands in."""
        values = {argument.name.value: argument.value for argument in node.arguments or ()}
        asked, given = [], []
        for name, argument in definition.args.items():
            if name in _PAGES:
                usual = argument.default_value if isinstance(argument.default_value, int) else _PAGE
                if name in values or (name != "last" and "last" not in values):
                    asked.append(self._amount(values.get(name), usual))
            elif name in values and _holds_objects(argument):
                given.append(self._amount(values[name], 1))
        return asked, given

    def _amount(self, value: ValueNode | None, usual: int) -> _Amount:
        if isinstance(value, IntValueNode):
            return _Amount(max(0, min(int(value.value), pages.MOST)))
        if isinstance(value, ListValueNode):
            return _Amount(len(value.values))
        if isinstance(value, VariableNode):
            default = self._defaults.get(value.name.value)
            return _Amount(usual if default is None else self._amount(default, usual).number, value.name.value)
        return _Amount(usual if value is None else max(usual, _PAGE))

    def _type(self, condition: NamedTypeNode | None, otherwise: Any) -> Any:
        return otherwise if condition is None else self._schema.get_type(condition.name.value)


def _holds_objects(argument: GraphQLArgument) -> bool:
    return is_list_type(get_nullable_type(argument.type)) and not is_leaf_type(get_named_type(argument.type))


def _whole(points: float) -> int:
    return max(1, math.ceil(points - 1e-9))
