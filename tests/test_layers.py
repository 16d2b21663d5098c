"""Imports point downwards, folder by folder, and no file is in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import deepteach

PACKAGE = Path(deepteach.__file__).parent

LAYERS = (
    "errors",
    "shards",
    "names rng tree",
    "distributed data models runs",
    "core report loggers",
    "teachers",
    "training",
    "integrations",
    "benchmarks reproduction",
    "cli",
)
"""Ground floor first. What stands on one line knows nothing of its neighbours."""

LONGEST_FILE = 400
"""Lines; a longer one says `Long, because` in its first twelve."""

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
FILES = {
    ".".join(["deepteach", *file.relative_to(PACKAGE).with_suffix("").parts]): file
    for file in PACKAGE.rglob("*.py")
    if file.name not in ("__main__.py", "__init__.py")
}


def room(module: str) -> str:
    """The folder, or the file, directly in the package."""
    return module.split(".")[1]


def imported(module: str, *, at_run_time: bool = False) -> set[str]:
    """The modules of this package that a module imports, inside functions too.

    `at_run_time`: only at its top, where a circle would stop the import.
    """
    tree = ast.parse(FILES[module].read_text())
    found: set[str] = set()
    for node in tree.body if at_run_time else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively: name the folder"
            found.update([f"{node.module}", *(f"{node.module}.{a.name}" for a in node.names)])
    return {name for name in FILES if name in found and name != module}


@pytest.mark.parametrize("module", FILES)
def test_imports_point_downwards(module: str) -> None:
    assert room(module) in RANK, f"give {room(module)} its place in LAYERS"
    own = RANK[room(module)]
    for other in imported(module):
        same = room(other) == room(module)
        assert same or RANK[room(other)] < own, f"{module} imports {other}"


def test_no_circle() -> None:
    graph = {module: imported(module, at_run_time=True) for module in FILES}
    assert len(tuple(TopologicalSorter(graph).static_order())) == len(FILES)


@pytest.mark.parametrize("module", [*FILES])
def test_files_are_short(module: str) -> None:
    lines = FILES[module].read_text().splitlines()
    reason = any("Long, because" in line for line in lines[:12])
    assert len(lines) <= LONGEST_FILE or reason, f"{module} has {len(lines)} lines: split it"
