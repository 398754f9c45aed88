"""Limits on what a query may ask, as validation rules made once, and the cache that depends on that."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

from graphql import (
    ASTValidationRule,
    DirectiveNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLField,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    NamedTypeNode,
    NoSchemaIntrospectionCustomRule,
    OperationDefinitionNode,
    SelectionSetNode,
    StringValueNode,
    ValidationRule,
    get_named_type,
    parse,
    specified_rules,
)
from graphql.validation.validate import ValidationAbortedError
from strawberry.extensions import SchemaExtension
from strawberry.schema.schema import validate_document
from strawberry.types import ExecutionContext

from tenants import pages

DEPTH = 10
ALIASES = 30
DIRECTIVES = 50
FIELDS = 1000
REPEATS = 200
ROWS = 20_000
TOKENS = 2000
CACHED = 1024
_NULL = "\0"
_PAGE = 50
"""The largest page of a field that is asked without a number."""


class Shape(ValidationRule):
    """Depth, aliases, fields and rows of each operation, its fragments counted as often as they are spread.

    Measured before any other rule looks at the document, and its end: comparing fields of one name, pair by pair, costs
    the square of their number.
    """

    def enter_document(self, node: DocumentNode, *_: Any) -> None:
        measure = _Measure(self.context.schema, self.context.document)
        for definition in node.definitions:
            if isinstance(definition, OperationDefinitionNode):
                root = self.context.schema.get_root_type(definition.operation)
                found = measure.of(definition.selection_set, root, frozenset())
                for value, most, unit in zip(found, (DEPTH, ALIASES, FIELDS, ROWS), _UNITS, strict=True):
                    if value > most:
                        raise ValidationAbortedError(f"The operation has more than {most} {unit}.", definition)
            elif isinstance(definition, FragmentDefinitionNode):
                measure.fragment(definition.name.value, frozenset())
        if max(measure.names.values(), default=0) > REPEATS:
            raise ValidationAbortedError(f"The document asks for one name more than {REPEATS} times.", node)


_UNITS = ("levels", "aliases", "fields", "rows at worst")
_Size = tuple[int, int, int, int]


class _Measure:
    """Measures each fragment once and adds its measure wherever it is spread."""

    def __init__(self, schema: GraphQLSchema, document: DocumentNode) -> None:
        self._schema = schema
        self._fragments = {
            definition.name.value: definition
            for definition in document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }
        self._known: dict[str, _Size] = {}
        self.names: Counter[str] = Counter()
        """How often each name stands in the measured selections."""

    def of(self, selection: SelectionSetNode | None, parent: object, within: frozenset[str]) -> _Size:
        depth = aliases = fields = rows = 0
        for node in () if selection is None else selection.selections:
            if isinstance(node, FragmentSpreadNode):
                inner = self.fragment(node.name.value, within)
            elif isinstance(node, FieldNode):
                inner = self._field(node, parent, within)
            else:
                inline = cast("InlineFragmentNode", node)
                inner = self.of(inline.selection_set, self._type(inline.type_condition, parent), within)
            depth = max(depth, inner[0])
            aliases, fields, rows = aliases + inner[1], fields + inner[2], rows + inner[3]
        return depth, aliases, fields, rows

    def _field(self, node: FieldNode, parent: object, within: frozenset[str]) -> _Size:
        self.names[node.name.value if node.alias is None else node.alias.value] += 1
        definition: GraphQLField | None = getattr(parent, "fields", {}).get(node.name.value)
        child = None if definition is None else get_named_type(definition.type)
        depth, aliases, fields, rows = self.of(node.selection_set, child, within)
        # Introspection is as deep as it is, and bounded by the schema.
        depth = 0 if node.name.value.startswith("__") else depth + 1
        paged = definition is not None and "first" in definition.args
        rows = _page(node) * (1 + rows) if paged else rows
        return depth, aliases + (node.alias is not None), fields + 1, rows

    def fragment(self, name: str, within: frozenset[str]) -> _Size:
        """The measure of a fragment, wherever it is spread."""
        if name in within or name not in self._fragments:
            return 0, 0, 0, 0  # Another rule reports circles and unknown names.
        if name not in self._known:
            fragment = self._fragments[name]
            parent = self._type(fragment.type_condition, None)
            self._known[name] = self.of(fragment.selection_set, parent, within | {name})
        return self._known[name]

    def _type(self, condition: NamedTypeNode | None, otherwise: object) -> object:
        return otherwise if condition is None else self._schema.get_type(condition.name.value)


def _page(node: FieldNode) -> int:
    """How many rows a page asks for; the most there can be where a variable says it."""
    for argument in node.arguments or ():
        if argument.name.value in {"first", "last"}:
            value = argument.value
            return max(0, min(int(value.value), pages.MOST)) if isinstance(value, IntValueNode) else pages.MOST
    return _PAGE


class Directives(ValidationRule):
    """How many directives a document may use."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._found = 0

    def enter_directive(self, node: DirectiveNode, *_: Any) -> None:
        self._found += 1
        if self._found == DIRECTIVES + 1:
            self.report_error(GraphQLError(f"The document has more than {DIRECTIVES} directives.", node))


class NoNull(ValidationRule):
    """No text in the document holds U+0000, which PostgreSQL can't store."""

    def enter_string_value(self, node: StringValueNode, *_: Any) -> None:
        if _NULL in node.value:
            self.report_error(_null_error())


class Reader(SchemaExtension):
    """Parses and validates each text once, and checks what validation leaves to be checked of a request.

    A document of several operations must say which one to run: strawberry would run the first. Variables must not hold
    U+0000. A text that can't be parsed is left to the schema, which knows how to say so on a stream.
    """

    def __init__(self, rules: tuple[type[ASTValidationRule], ...]) -> None:
        self._rules = rules

    def on_operation(self) -> Iterator[None]:
        context = self.execution_context
        context.parse_options["max_tokens"] = TOKENS
        with contextlib.suppress(GraphQLError):
            read = _read(context.schema._schema, self._rules, context.query or "")
            context.graphql_document = read.document
            context.pre_execution_errors = list(read.errors) or _errors(context, read.operations)
        yield


class _Read(NamedTuple):
    """A document, how many operations it has, and what is wrong with it."""

    document: DocumentNode
    operations: int
    errors: Sequence[GraphQLError]


def _errors(context: ExecutionContext, operations: int) -> list[GraphQLError]:
    if context._provided_operation_name is None and operations > 1:
        message = "The document has several operations: say which one in operationName."
        return [GraphQLError(message, extensions={"code": "BAD_USER_INPUT"})]
    return [_null_error()] if _holds_null(context.variables) else []


@lru_cache(maxsize=CACHED)
def _read(schema: GraphQLSchema, rules: tuple[type[ASTValidationRule], ...], text: str) -> _Read:
    document = parse(text, max_tokens=TOKENS)
    operations = sum(isinstance(definition, OperationDefinitionNode) for definition in document.definitions)
    errors = validate_document(schema, document, rules)
    for error in errors:
        error.extensions = {"code": "GRAPHQL_VALIDATION_FAILED", **(error.extensions or {})}
    return _Read(document, operations, errors)


def reader(*, introspection: bool) -> Callable[[], SchemaExtension]:
    """A factory of the extension that reads documents within limits, and keeps what it has read.

    Args:
        introspection: whether clients may read the schema from the service.
    """
    hidden = () if introspection else (NoSchemaIntrospectionCustomRule,)
    rules = (*specified_rules, Shape, Directives, NoNull, *hidden)
    return lambda: Reader(rules)


def _null_error() -> GraphQLError:
    return GraphQLError("Text must not hold the null character.", extensions={"code": "BAD_USER_INPUT"})


def _holds_null(value: object) -> bool:
    if isinstance(value, str):
        return _NULL in value
    if isinstance(value, dict):
        return any(_holds_null(key) or _holds_null(inner) for key, inner in value.items())
    return isinstance(value, list) and any(_holds_null(inner) for inner in value)
