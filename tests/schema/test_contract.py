"""The schema is the contract: the exported file is in step, and nothing clients rely on is missing or different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
    build_schema,
    print_ast,
)
from graphql.utilities import find_breaking_changes, get_default_value_ast

from schema import root

CONTRACT = build_schema((Path(__file__).parent / "contract.graphql").read_text(encoding="utf-8"))
EXPORTED = build_schema(root.export())
TYPES = sorted(name for name in CONTRACT.type_map if not name.startswith("__"))


def test_the_exported_file_is_in_step_with_the_code() -> None:
    file = Path(root.__file__).with_name("schema.graphql")
    assert file.read_text(encoding="utf-8") == root.export(), "write it again: tenantry schema export"


def test_no_change_breaks_a_client() -> None:
    assert find_breaking_changes(CONTRACT, root.build()._schema) == []


@pytest.mark.parametrize("name", TYPES)
def test_a_type_is_as_the_contract_has_it(name: str) -> None:
    promised, kept = CONTRACT.type_map[name], EXPORTED.type_map[name]
    assert type(kept) is type(promised)
    shown = _shape(kept)
    assert {key: shown.get(key) for key in _shape(promised)} == _shape(promised)


def test_an_enumeration_has_no_value_that_clients_do_not_know() -> None:
    for name in TYPES:
        promised, kept = CONTRACT.type_map[name], EXPORTED.type_map[name]
        if isinstance(promised, GraphQLEnumType) and isinstance(kept, GraphQLEnumType):
            assert set(kept.values) == set(promised.values), name


def _shape(known: GraphQLNamedType) -> dict[str, Any]:
    """Each field and argument with its type and default, each enumeration's value, each interface."""
    shape: dict[str, Any] = {}
    if isinstance(known, GraphQLEnumType):
        shape.update(dict.fromkeys(known.values, "value"))
    if isinstance(known, GraphQLInputObjectType):
        shape["@oneOf"] = known.is_one_of
        for name, given in known.fields.items():
            shape[name] = (str(given.type), _default(given))
    if isinstance(known, GraphQLObjectType | GraphQLInterfaceType):
        shape.update({f"implements {interface.name}": True for interface in known.interfaces})
        for name, field in known.fields.items():
            shape[name] = str(field.type)
            for argument, given in field.args.items():
                shape[f"{name}({argument})"] = (str(given.type), _default(given))
    return shape


def _default(given: Any) -> str | None:
    node = get_default_value_ast(given)
    return None if node is None else print_ast(node)
