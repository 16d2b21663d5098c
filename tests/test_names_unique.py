"""A name is given once: no two public things of the package are called the same."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import deepteach

PACKAGE = Path(deepteach.__file__).parent

COMMAND = {"add", "run"}
"""Every file of deepteach/cli is a command, and answers to these two; `training.api.run` is what
they and the shelves call a run, too."""

TWICE = {"uniform": {"data.noise", "teachers.uniform"}}
"""A recipe is called as its method, and a kind of noise as its setting; no file needs both."""


def public() -> dict[str, set[str]]:
    """The modules that define each public class, function and constant at their top."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names: list[str] = []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for name in names:
                command = module.startswith("cli.") and name in COMMAND
                if not name.startswith("_") and not command:
                    found[name].add(module)
    return found


def test_a_name_is_given_once() -> None:
    twice = {name: modules for name, modules in public().items() if len(modules) > 1}
    assert twice == TWICE
