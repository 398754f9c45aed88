"""Limits on what a query may ask, as validation rules made once, and the cache that depends on that."""

from __future__ import annotations

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
    GraphQLSchema,
    InlineFragmentNode,
    NoSchemaIntrospectionCustomRule,
    OperationDefinitionNode,
    SelectionSetNode,
    StringValueNode,
    ValidationRule,
    parse,
    specified_rules,
)
from graphql.validation.validate import ValidationAbortedError
from strawberry.extensions import SchemaExtension
from strawberry.schema.schema import validate_document
from strawberry.types import ExecutionContext

from schema import costs
from schema.costs import Cost
from tenants.buckets import Bucket
from tenants.errors import RateLimited

DEPTH = 10
ALIASES = 30
DIRECTIVES = 50
FIELDS = 1000
REPEATS = 200
TOKENS = 2000
CACHED = 1024
_NULL = "\0"


class Shape(ValidationRule):
    """Depth, aliases and fields of each operation, its fragments counted as often as they are spread.

    Measured before any other rule looks at the document, and its end: comparing fields of one name, pair by pair, costs
    the square of their number.
    """

    def enter_document(self, node: DocumentNode, *_: Any) -> None:
        measure = _Measure(self.context.document)
        for definition in node.definitions:
            if isinstance(definition, OperationDefinitionNode):
                found = measure.of(definition.selection_set, frozenset())
                for value, most, unit in zip(found, (DEPTH, ALIASES, FIELDS), _UNITS, strict=True):
                    if value > most:
                        raise ValidationAbortedError(f"The operation has more than {most} {unit}.", definition)
            elif isinstance(definition, FragmentDefinitionNode):
                measure.fragment(definition.name.value, frozenset())
        if max(measure.names.values(), default=0) > REPEATS:
            raise ValidationAbortedError(f"The document asks for one name more than {REPEATS} times.", node)


_UNITS = ("levels", "aliases", "fields")
_Size = tuple[int, int, int]


class _Measure:
    """Measures each fragment once and adds its measure wherever it is spread."""

    def __init__(self, document: DocumentNode) -> None:
        self._fragments = {
            definition.name.value: definition
            for definition in document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }
        self._known: dict[str, _Size] = {}
        self.names: Counter[str] = Counter()
        """How often each name stands in the measured selections."""

    def of(self, selection: SelectionSetNode | None, within: frozenset[str]) -> _Size:
        depth = aliases = fields = 0
        for node in () if selection is None else selection.selections:
            if isinstance(node, FragmentSpreadNode):
                inner = self.fragment(node.name.value, within)
            elif isinstance(node, FieldNode):
                inner = self._field(node, within)
            else:
                inner = self.of(cast("InlineFragmentNode", node).selection_set, within)
            depth = max(depth, inner[0])
            aliases, fields = aliases + inner[1], fields + inner[2]
        return depth, aliases, fields

    def _field(self, node: FieldNode, within: frozenset[str]) -> _Size:
        self.names[node.name.value if node.alias is None else node.alias.value] += 1
        depth, aliases, fields = self.of(node.selection_set, within)
        # Introspection is as deep as it is, and bounded by the schema.
        depth = 0 if node.name.value.startswith("__") else depth + 1
        return depth, aliases + (node.alias is not None), fields + 1

    def fragment(self, name: str, within: frozenset[str]) -> _Size:
        """The measure of a fragment, wherever it is spread."""
        if name in within or name not in self._fragments:
            return 0, 0, 0  # Another rule reports circles and unknown names.
        if name not in self._known:
            self._known[name] = self.of(self._fragments[name].selection_set, within | {name})
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


class Reader(SchemaExtension):
    """Parses and validates each text once, and checks what validation leaves to be checked of a request.

    A document of several operations must say which one to run: strawberry would run the first. Variables must not hold
    U+0000. An operation must cost no more than one may, nor than the caller has left; what it did not need is given
    back. A text that can't be parsed is left to the schema, which knows how to say so on a stream.
    """

    def __init__(self, rules: tuple[type[ASTValidationRule], ...]) -> None:
        self._rules = rules
        self._cost: Cost | None = None
        """Of the operation that runs."""
        self._asked = self._charged = 0

    def on_operation(self) -> Iterator[None]:
        context = self.execution_context
        context.parse_options["max_tokens"] = TOKENS
        if wait := self._budget.wait(1):  # Whoever has nothing left is not even read.
            context.graphql_document, context._provided_operation_name = _NOTHING, None
            context.pre_execution_errors = [_too_soon(wait)]
        else:
            context.pre_execution_errors = self._refuse(context)
        yield

    def get_results(self) -> dict[str, Any]:
        """What the operation has cost, beside its answer; a subscription is charged for when it begins."""
        cost, context, budget = self._cost, self.execution_context, self._budget
        if cost is not None:
            if cost.streams:
                return {}
            self._cost = None
            data = getattr(context.result, "data", None)
            if data is not None:
                self._charge(cost.found(data, context.variables) - self._asked)
        status = {
            "maximumAvailable": int(budget.size),
            "currentlyAvailable": int(budget.room()),
            "restoreRate": budget.rate,
        }
        return {"cost": {"requested": self._asked, "actual": self._charged, "throttleStatus": status}}

    def _refuse(self, context: ExecutionContext) -> list[GraphQLError] | None:
        """Why an operation must not run; charges for it, and for reading what is refused. None: it can't be parsed."""
        text = context.query or ""
        try:
            read = _read(context.schema._schema, self._rules, text)
        except GraphQLError:
            self._charge(costs.refusal(text))
            return None
        context.graphql_document = read.document
        if errors := list(read.errors) or _errors(context, read.operations):
            self._charge(costs.refusal(text))
            return errors
        cost = read.costs.get(context._provided_operation_name)
        if cost is None:
            return []  # There is no operation of this name: the schema says so.
        self._asked = cost.asked(context.variables)
        if self._asked > costs.MOST:
            self._charge(costs.refusal(text))
            return [_too_dear(self._asked)]
        if wait := self._budget.wait(self._asked):
            return [_too_soon(wait)]
        self._charge(self._asked)
        self._cost = cost
        return []

    def _charge(self, points: int) -> None:
        self._charged += points
        self._budget.pour(points)

    @property
    def _budget(self) -> Bucket:
        budget: Bucket = self.execution_context.context.budget
        return budget


_NOTHING = parse("{ __typename }")


class _Read(NamedTuple):
    """A document, how many operations it has, what each costs, and what is wrong with it."""

    document: DocumentNode
    operations: int
    costs: dict[str | None, Cost]
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
    return _Read(document, operations, {} if errors else costs.of(schema, document), errors)


def reader(*, introspection: bool) -> Callable[[], SchemaExtension]:
    """A factory of the extension that reads documents within limits, and keeps what it has read.

    Args:
        introspection: whether clients may read the schema from the service.
    """
    hidden = () if introspection else (NoSchemaIntrospectionCustomRule,)
    rules = (*specified_rules, Shape, Directives, NoNull, *hidden)
    return lambda: Reader(rules)


def _too_soon(wait: float) -> GraphQLError:
    error = RateLimited("Your budget is used up: wait, or ask for less.", retry_after_seconds=wait)
    return GraphQLError(error.message, original_error=error)


def _too_dear(points: int) -> GraphQLError:
    message = f"The operation may cost {points} points; {costs.MOST} is the most: ask for smaller pages."
    return GraphQLError(message, extensions={"code": "GRAPHQL_VALIDATION_FAILED"})


def _null_error() -> GraphQLError:
    return GraphQLError("Text must not hold the null character.", extensions={"code": "BAD_USER_INPUT"})


def _holds_null(value: object) -> bool:
    if isinstance(value, str):
        return _NULL in value
    if isinstance(value, dict):
        return any(_holds_null(key) or _holds_null(inner) for key, inner in value.items())
    return isinstance(value, list) and any(_holds_null(inner) for inner in value)
