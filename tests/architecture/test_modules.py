"""House rules of modules: one direction of imports, one noun for a name, short enough to read."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import sources
from tests.support.folders import ROOT

LONGEST = 350
NO_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "core", "base", "misc"}
FAMILY = {"__init__", "models", "inputs", "service", "gateway", "tasks"}
FAMILIES = sorted(path.parent for path in (ROOT / "tasks/families").glob("*/__init__.py"))


def test_imports_go_one_way() -> None:
    checked = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


def test_modules_are_named_after_what_they_are() -> None:
    named = {part for path in sources.modules() for part in (path.stem, *path.relative_to(ROOT).parts[:-1])}
    assert named & NO_NAMES == set()


def test_no_file_is_too_long_to_read() -> None:
    lengths = {sources.name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources.modules()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_every_module_says_what_it_is_in_one_line_first() -> None:
    for path in sources.modules():
        tree = sources.tree(path)
        if tree.body:
            said = ast.get_docstring(tree)
            assert said, sources.name(path)
            assert said.splitlines()[0].endswith((".", ":")), sources.name(path)


@pytest.mark.parametrize("folder", FAMILIES, ids=lambda folder: folder.name)
def test_a_family_consists_of_the_same_modules(folder: Path) -> None:
    found = {
        path.stem for path in folder.iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }
    assert found - FAMILY == set()
    assert {"__init__", "inputs", "tasks"} <= found
    assert len((folder / "__init__.py").read_text(encoding="utf-8").splitlines()) <= 40


def test_nothing_is_left_for_later() -> None:
    words = ("TODO", "FIXME", "XXX", "HACK", "NotImplementedError")
    found = [
        (sources.name(path), word)
        for path in [*sources.modules(), *sorted((ROOT / "tasks").rglob("*.sql"))]
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []
