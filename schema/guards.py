"""What is asked is read once, within limits, and paid for before it runs."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import orjson
from graphql import (
    ASTValidationRule,
    DocumentNode,
    GraphQLError,
    GraphQLSchema,
    NoSchemaIntrospectionCustomRule,
    OperationDefinitionNode,
    parse,
    specified_rules,
    validate,
)
from strawberry.extensions import SchemaExtension
from strawberry.schema.validation_rules.maybe_null import MaybeNullValidationRule
from strawberry.schema.validation_rules.one_of import OneOfInputValidationRule
from strawberry.types import ExecutionContext

from schema import costs, shapes
from schema.costs import Cost
from tenants.buckets import Bucket
from tenants.errors import RateLimited

ERRORS = 5
"""After how many the validation stops: each may show all of what is wrong."""
KEPT_BYTES = 32 * 1024 * 1024
_OF_TOKEN = 600
"""About how many bytes a token takes in a document that was read, with where it stands and what it costs."""
_ESCAPED_NULL = rb"\u0000"
_NULL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Document(NamedTuple):
    """A valid document, how many operations it has, and what each costs."""

    tree: DocumentNode
    operations: int
    costs: dict[str | None, Cost]


class Invalid(Exception):
    """What is wrong with a text.

    Args:
        errors: the first of them.
    """

    def __init__(self, errors: list[GraphQLError]) -> None:
        super().__init__()
        self.errors = errors


class Documents:
    """Reads texts, and keeps what was asked for last, as far as there is room.

    Args:
        rules: of validation.
        hints: whether an error may name what is near in the schema, which takes long to find.
        room: how many bytes may be kept, about.
    """

    def __init__(self, rules: tuple[type[ASTValidationRule], ...], *, hints: bool, room: int = KEPT_BYTES) -> None:
        self._rules = rules
        self._hints = hints
        self._room = room
        self._kept: OrderedDict[str, Document] = OrderedDict()
        self.size = 0
        """How many bytes are kept, about."""

    def find(self, text: str) -> Document | None:
        """What was kept of a text."""
        found = self._kept.get(text)
        if found is not None:
            self._kept.move_to_end(text)
        return found

    def read(self, schema: GraphQLSchema, text: str) -> Document:
        """Parse and validate a text.

        Raises:
            Invalid: something is wrong with it.
        """
        try:
            tree = parse(text, max_tokens=costs.TOKENS)
        except GraphQLError as error:
            raise Invalid([error]) from None
        errors = validate(schema, tree, self._rules, max_errors=ERRORS, hide_suggestions=not self._hints)
        if errors:
            for found in errors:
                found.extensions = {"code": "GRAPHQL_VALIDATION_FAILED", **(found.extensions or {})}
            raise Invalid(errors)
        operations = sum(isinstance(definition, OperationDefinitionNode) for definition in tree.definitions)
        return Document(tree, operations, costs.of(schema, tree))

    def keep(self, text: str, document: Document) -> None:
        """Keep what was read; what nobody has asked for the longest goes."""
        self._kept[text] = document
        self.size += _size(text, document)
        while self.size > self._room:
            self.size -= _size(*self._kept.popitem(last=False))


class Reader(SchemaExtension):
    """Reads each text once, and checks what validation leaves to be checked of a request.

    A document of several operations must say which one to run: strawberry would run the first. Variables must not hold
    U+0000. A text that is new costs what reading it takes, right or wrong. An operation must cost no more than one may,
    nor than the caller has left; what it did not need is given back, unless something went wrong. Nothing is read of
    who has nothing left, nor kept of strangers, who could put out what others ask for.
    """

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._cost: Cost | None = None
        """Of the operation that runs."""
        self._asked = self._charged = 0

    def on_operation(self) -> Iterator[None]:
        context = self.execution_context
        if context.query:  # Without one, the schema says so.
            errors = self._refuse(context, context.query)
            if context.graphql_document is None:
                context.graphql_document, context._provided_operation_name = _NOTHING, None
            context.pre_execution_errors = errors
        yield

    def get_results(self) -> dict[str, Any]:
        """What the operation has cost, beside its answer; a subscription is charged for when it begins."""
        cost, context, budget = self._cost, self.execution_context, self._budget
        if cost is not None:
            if cost.streams:
                return {}
            self._cost = None
            data = getattr(context.result, "data", None)
            # An error takes what was found out of the answer, not the work that it took.
            if data is not None and not getattr(context.result, "errors", None):
                self._charge(cost.found(data, context.variables) - self._asked)
        status = {
            "maximumAvailable": int(budget.size),
            "currentlyAvailable": int(budget.room()),
            "restoreRate": budget.rate,
        }
        return {"cost": {"requested": self._asked, "actual": self._charged, "throttleStatus": status}}

    def _refuse(self, context: ExecutionContext, text: str) -> list[GraphQLError]:
        """Why an operation must not run; charges for it, and for reading what is new or refused."""
        if wait := self._budget.wait(1):
            return [_too_soon(wait)]
        document = self._documents.find(text)
        if document is None:
            try:
                document = self._documents.read(context.schema._schema, text)
            except Invalid as invalid:
                self._charge(costs.REFUSAL + costs.reading(text))
                return invalid.errors
            self._charge(costs.reading(text, document.tree.token_count))
            if context.context.scope is not None:
                self._documents.keep(text, document)
        context.graphql_document = document.tree
        if context._provided_operation_name is None and document.operations > 1:
            self._charge(costs.REFUSAL)
            return [_several()]
        cost = document.costs.get(context._provided_operation_name)
        if cost is None:
            return []  # There is no operation of this name: the schema says so.
        self._asked = cost.asked(context.variables)
        if self._asked > costs.MOST:
            self._charge(costs.REFUSAL)
            return [_too_dear(self._asked)]
        if wait := self._budget.wait(self._asked):
            return [_too_soon(wait)]
        self._charge(self._asked)
        if context.variables and (error := _look_through(context.variables)):
            return [error]
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


def reader(*, introspection: bool) -> Callable[[], SchemaExtension]:
    """A factory of the extension that reads documents within limits, and keeps what it has read.

    Args:
        introspection: whether clients may read the schema from the service.
    """
    hidden = () if introspection else (NoSchemaIntrospectionCustomRule,)
    ours = (shapes.Shape, shapes.Directives, shapes.NoNull, MaybeNullValidationRule, OneOfInputValidationRule)
    documents = Documents((*specified_rules, *ours, *hidden), hints=introspection)
    return lambda: Reader(documents)


def _size(text: str, document: Document) -> int:
    return 2 * len(text) + _OF_TOKEN * document.tree.token_count


def _look_through(variables: dict[str, Any]) -> GraphQLError | None:
    """What is wrong with variables, whatever they are for. As JSON they are searched a hundred times as fast."""
    try:
        text = orjson.dumps(variables)
    except TypeError:
        message = "Variables must be JSON, at most 250 levels deep, with integers of at most 64 bits."
        return GraphQLError(message, extensions={"code": "BAD_USER_INPUT"})
    return shapes.null_error() if _ESCAPED_NULL in text and _NULL.search(text) else None


def _several() -> GraphQLError:
    message = "The document has several operations: say which one in operationName."
    return GraphQLError(message, extensions={"code": "BAD_USER_INPUT"})


def _too_soon(wait: float) -> GraphQLError:
    error = RateLimited("Your budget is used up: wait, or ask for less.", retry_after_seconds=wait)
    return GraphQLError(error.message, original_error=error)


def _too_dear(points: int) -> GraphQLError:
    message = f"The operation may cost {points} points; {costs.MOST} is the most: ask for smaller pages."
    return GraphQLError(message, extensions={"code": "GRAPHQL_VALIDATION_FAILED"})
