"""Limits on what a query may ask, as validation rules made once, and the caches that depend on that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from graphql import (
    DirectiveNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    NoSchemaIntrospectionCustomRule,
    OperationDefinitionNode,
    SelectionSetNode,
    StringValueNode,
    ValidationRule,
)
from strawberry.extensions import AddValidationRules, MaxTokensLimiter, ParserCache, SchemaExtension, ValidationCache

DEPTH = 10
ALIASES = 30
DIRECTIVES = 50
FIELDS = 1000
TOKENS = 2000
CACHED = 1024
_NULL = "\0"


class Shape(ValidationRule):
    """Depth, aliases and fields of each operation with its fragments spread out, however often they are spread."""

    def enter_operation_definition(self, node: OperationDefinitionNode, *_: Any) -> None:
        fragments = {
            definition.name.value: definition.selection_set
            for definition in self.context.document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }
        depth, aliases, fields = _Measure(fragments).of(node.selection_set, frozenset())
        for name, found, most in (("depth", depth, DEPTH), ("aliases", aliases, ALIASES), ("fields", fields, FIELDS)):
            if found > most:
                self.report_error(GraphQLError(f"The operation has more than {most} {_UNITS[name]}.", node))


_UNITS = {"depth": "levels", "aliases": "aliases", "fields": "fields"}


class _Measure:
    """Counts each fragment once and adds its count wherever it is spread."""

    def __init__(self, fragments: dict[str, SelectionSetNode]) -> None:
        self._fragments = fragments
        self._known: dict[str, tuple[int, int, int]] = {}

    def of(self, selection: SelectionSetNode | None, within: frozenset[str]) -> tuple[int, int, int]:
        depth = aliases = fields = 0
        for node in () if selection is None else selection.selections:
            if isinstance(node, FragmentSpreadNode):
                inner = self._spread(node.name.value, within)
            else:
                inner = self.of(getattr(node, "selection_set", None), within)
                if isinstance(node, FieldNode):
                    introspects = node.name.value.startswith("__")
                    # Introspection is as deep as it is, and bounded by the schema.
                    inner = (0 if introspects else inner[0] + 1, inner[1] + (node.alias is not None), inner[2] + 1)
            depth, aliases, fields = max(depth, inner[0]), aliases + inner[1], fields + inner[2]
        return depth, aliases, fields

    def _spread(self, name: str, within: frozenset[str]) -> tuple[int, int, int]:
        if name in within or name not in self._fragments:
            return 0, 0, 0  # Another rule reports circles and unknown names.
        if name not in self._known:
            self._known[name] = self.of(self._fragments[name], within | {name})
        return self._known[name]


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


class Checked(SchemaExtension):
    """What validation leaves to be checked of a request; comes after it.

    Validation errors get their code. A document of several operations must say which one to run: strawberry would run
    the first. Variables must not hold U+0000.
    """

    def on_validate(self) -> Iterator[None]:
        context = self.execution_context
        for error in context.pre_execution_errors or ():
            if not error.extensions or "code" not in error.extensions:
                error.extensions = {**(error.extensions or {}), "code": "GRAPHQL_VALIDATION_FAILED"}
        if not context.pre_execution_errors:
            if context._provided_operation_name is None and _operations(context.graphql_document) > 1:
                message = "The document has several operations: say which one in operationName."
                context.pre_execution_errors = [GraphQLError(message, extensions={"code": "BAD_USER_INPUT"})]
            elif _holds_null(context.variables):
                context.pre_execution_errors = [_null_error()]
        yield


class CachedParser(ParserCache):
    """Parses each text once. One that can't be parsed is left to the schema, which knows how to say so on a stream."""

    def on_parse(self) -> Iterator[None]:
        context = self.execution_context
        with contextlib.suppress(GraphQLError):
            context.graphql_document = self.cached_parse_document(context.query, **context.parse_options)
        yield


def extensions(*, introspection: bool) -> list[Any]:
    """Factories of the extensions that limit and cache.

    Args:
        introspection: whether clients may read the schema from the service.
    """
    rules: list[Any] = [Shape, Directives, NoNull]
    if not introspection:
        rules.append(NoSchemaIntrospectionCustomRule)
    return [
        lambda: AddValidationRules(rules),
        lambda: MaxTokensLimiter(max_token_count=TOKENS),
        lambda: CachedParser(maxsize=CACHED),
        lambda: ValidationCache(maxsize=CACHED),
        Checked,
    ]


def _operations(document: DocumentNode | None) -> int:
    definitions = () if document is None else document.definitions
    return sum(isinstance(definition, OperationDefinitionNode) for definition in definitions)


def _null_error() -> GraphQLError:
    return GraphQLError("Text must not hold the null character.", extensions={"code": "BAD_USER_INPUT"})


def _holds_null(value: object) -> bool:
    if isinstance(value, str):
        return _NULL in value
    if isinstance(value, dict):
        return any(_holds_null(key) or _holds_null(inner) for key, inner in value.items())
    return isinstance(value, list) and any(_holds_null(inner) for inner in value)
