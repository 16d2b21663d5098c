"""Files import only downwards, so the package can be read in one order."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import deepteach

ORDER = """
    errors strict tree generators interrupts streams
    packing checkpoint ranks rundir
    checks data noise augment pictures sources nets twice
    student features teacher rules objective microbatch differences adjoint exact lookahead
    together trusted audit coach
    baselines mentornet course l2t_loss l2t_data evaluate rehearsals controls
    methods config published scales cell recipes
    progress fit quality resolve recording train estimator doctor costs bench
    pairing gains sheet canvas curves scatter plots findings ranking table report
    executors reproduce outcome cli
""".split()
FILES = sorted(Path(deepteach.__file__).parent.glob("*.py"))
MODULES = [file for file in FILES if not file.stem.startswith("__")]


def imported(file: Path) -> set[str]:
    """The modules of this package that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = ".".join(filter(None, ["deepteach" if node.level else "", node.module]))
            found.update([source, *(f"{source}.{alias.name}" for alias in node.names)])
    return {file.stem for file in MODULES if f"deepteach.{file.stem}" in found}


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.stem)
def test_imports_point_downwards(file: Path) -> None:
    assert file.stem in ORDER, f"give {file.name} its place in ORDER"
    below = ORDER[: ORDER.index(file.stem)]
    assert imported(file) <= set(below), f"{file.name} imports upwards"
