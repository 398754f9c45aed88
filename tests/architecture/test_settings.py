"""`.env.example` lists every setting with its default and nothing else, and every setting is read somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from tenants import settings
from tenants.settings import PLAIN_NAMES, Settings
from tests.support import sources
from tests.support.folders import ROOT

EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
VALUES = dict(line.split("=", 1) for line in EXAMPLE.splitlines() if "=" in line and not line.startswith("#"))


def _paths(model: type[BaseModel], *above: str) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _paths(field.annotation, *above, name)
        else:
            yield (*above, name)


@pytest.fixture
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VALUES, *PLAIN_NAMES):
        monkeypatch.delenv(name, raising=False)


def test_the_example_lists_every_setting_and_nothing_else() -> None:
    assert set(VALUES) == {"TENANTRY_" + "__".join(path).upper() for path in _paths(Settings)}


@pytest.mark.usefixtures("_bare_environment")
def test_the_examples_values_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = settings.load()
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    assert settings.load() == defaults


@pytest.mark.usefixtures("_bare_environment")
def test_what_has_a_default_has_it_in_the_example() -> None:
    empty = {name for name, value in VALUES.items() if not value}
    defaults = settings.load()
    for path in _paths(Settings):
        value: object = defaults
        for part in path:
            value = getattr(value, part)
        name = "TENANTRY_" + "__".join(path).upper()
        if path != ("worker", "concurrency"):
            assert (name in empty) == (str(value) in {"", "None"}), name


def test_the_example_tells_every_plain_name() -> None:
    told = set(re.findall(r"\b[A-Z][A-Z_]+\b", EXAMPLE))
    assert set(PLAIN_NAMES) - told == set()


def test_the_example_tells_every_variable_of_the_command_line() -> None:
    read = {
        node.value
        for path in sources.modules("api/commands")
        for node in ast.walk(sources.tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"(DATABASE|TENANTRY)_[A-Z_]+", node.value)
    }
    assert read
    assert [name for name in sorted(read) if not re.search(rf"\b{name}\b", EXAMPLE)] == []


def test_every_setting_is_read_somewhere() -> None:
    read = {
        node.attr
        for path in sources.modules("api", "schema", "tasks", "tenants", "migrations")
        for node in ast.walk(sources.tree(path))
        if isinstance(node, ast.Attribute)
    }
    assert {".".join(path) for path in _paths(Settings) if path[-1] not in read} == set()
