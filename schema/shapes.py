"""The shape a document may have: validation rules, made once, as the cache of documents depends on that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from graphql import (
    DirectiveNode,
    DocumentNode,
    ExecutableDefinitionNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    ListValueNode,
    Node,
    ObjectValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    StringValueNode,
    ValidationRule,
    ValueNode,
)
from graphql.validation.validate import ValidationAbortedError

DEPTH = 10
ALIASES = 30
DIRECTIVES = 50
FIELDS = 1000
PAIRS = 3000
INPUTS = 100
NULL = "\0"


class Shape(ValidationRule):
    """Levels and aliases of each operation, its fragments counted as often as they are spread; fields of all of them.

    Measured before any other rule looks at the document, and its end: comparing fields of one name, pair by pair, costs
    the square of their number, and so does telling what is wrong with each field of one input.
    """

    def enter_document(self, node: DocumentNode, *_: Any) -> None:
        measure = _Measure(node)
        fields = 0
        for definition in node.definitions:
            if isinstance(definition, OperationDefinitionNode):
                depth, aliases, more = measure.of(definition.selection_set, frozenset())
                measure.values(variable.default_value for variable in definition.variable_definitions or ())
                fields += more
                _bound("The operation", "levels", depth, DEPTH, definition)
                _bound("The operation", "aliases", aliases, ALIASES, definition)
            elif isinstance(definition, FragmentDefinitionNode):
                _bound(
                    "A fragment", "fields", measure.fragment(definition.name.value, frozenset())[2], FIELDS, definition
                )
            _bound("The document", "fields", fields, FIELDS, definition)
        _bound("An object in the document", "fields", measure.inputs, INPUTS, node)
        _bound("The document", "pairs of fields to merge", measure.pairs(), PAIRS, node)


def _bound(what: str, unit: str, found: int, most: int, node: Node) -> None:
    if found > most:
        raise ValidationAbortedError(f"{what} has more than {most} {unit}.", node)


_Size = tuple[int, int, int]


class _Measure:
    """Measures each fragment once and adds its measure wherever it is spread."""

    def __init__(self, document: DocumentNode) -> None:
        self._selections = [
            definition.selection_set
            for definition in document.definitions
            if isinstance(definition, ExecutableDefinitionNode)
        ]
        self._fragments = {
            definition.name.value: definition
            for definition in document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }
        self._known: dict[str, _Size] = {}
        self.inputs = 0
        """How many fields the largest object has that is handed in."""

    def of(self, selection: SelectionSetNode | None, within: frozenset[str]) -> _Size:
        """Levels, aliases and fields of a selection."""
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
        self.values(argument.value for argument in node.arguments or ())
        depth, aliases, fields = self.of(node.selection_set, within)
        # Introspection is as deep as it is, and bounded by the schema.
        depth = 0 if node.name.value.startswith("__") else depth + 1
        return depth, aliases + (node.alias is not None), fields + 1

    def values(self, values: Iterable[ValueNode | None]) -> None:
        """Measure what is handed in; the parser has bounded how deep it is."""
        for value in values:
            if isinstance(value, ObjectValueNode):
                self.inputs = max(self.inputs, len(value.fields))
                self.values(field.value for field in value.fields)
            elif isinstance(value, ListValueNode):
                self.values(value.values)

    def fragment(self, name: str, within: frozenset[str]) -> _Size:
        """The measure of a fragment, wherever it is spread."""
        if name in within or name not in self._fragments:
            return 0, 0, 0  # Another rule reports circles and unknown names.
        if name not in self._known:
            self._known[name] = self.of(self._fragments[name].selection_set, within | {name})
        return self._known[name]

    def pairs(self) -> int:
        """How many pairs of fields and of fragments stand in one place under one name, or more than may.

        To be asked once the document is known to have few fields, wherever its fragments are spread.
        """
        found = 0
        for selection in self._selections:
            found += self._pairs([selection], frozenset())
            if found > PAIRS:
                break
        return found

    def _pairs(self, selections: list[SelectionSetNode], above: frozenset[str]) -> int:
        fields: dict[str, list[FieldNode]] = {}
        spread = set(above)  # Not again below: there are circles of fragments, which another rule reports.
        self._collect(selections, fields, spread)
        found = _choices(len(spread) - len(above)) + sum(_choices(len(nodes)) for nodes in fields.values())
        for nodes in fields.values():
            if found > PAIRS:
                break
            below = [node.selection_set for node in nodes if node.selection_set is not None]
            if below:
                found += self._pairs(below, frozenset(spread))
        return found

    def _collect(
        self, selections: Iterable[SelectionSetNode], fields: dict[str, list[FieldNode]], spread: set[str]
    ) -> None:
        """Collect the fields of selections by their names in the answer, and the fragments they are spread by."""
        for selection in selections:
            for node in selection.selections:
                if isinstance(node, FieldNode):
                    name = node.name if node.alias is None else node.alias
                    fields.setdefault(name.value, []).append(node)
                elif isinstance(node, InlineFragmentNode):
                    self._collect([node.selection_set], fields, spread)
                else:
                    known = self._fragments.get(cast("FragmentSpreadNode", node).name.value)
                    if known is not None and known.name.value not in spread:
                        spread.add(known.name.value)
                        self._collect([known.selection_set], fields, spread)


def _choices(number: int) -> int:
    return number * (number - 1) // 2


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
        if NULL in node.value:
            self.report_error(null_error())


def null_error() -> GraphQLError:
    """Text with U+0000 was handed in."""
    return GraphQLError("Text must not hold the null character.", extensions={"code": "BAD_USER_INPUT"})
