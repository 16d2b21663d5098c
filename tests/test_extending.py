"""docs/extending.md works as it stands: its files, its Python, its commands, in their order."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from toy import Command

import deepteach as dt

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(python|sh)\n(.*?)^```$", PAGE, re.S | re.M)
FILE = re.compile(r"# (\w+)\.py\n")
SMALL = ["--baseline", "false", "--threads", "1", "--no-report"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in FILE.findall(PAGE):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_every_block_runs(call: Command, here: Path) -> None:
    names: dict[str, object] = {"dt": dt, "torch": torch}
    for language, text in BLOCKS:
        file = FILE.match(text)
        if language == "sh":
            for line in text.splitlines():
                words = shlex.split(line)
                assert words[0] == "deepteach"
                answer = call(*words[1:], *SMALL)
                assert answer.code == 0, (line, answer)
        elif file:
            (here / f"{file[1]}.py").write_text(text, encoding="utf-8")
        else:
            exec(compile(text, "docs/extending.md", "exec"), names)
    assert isinstance(names["result"], dt.Result)
    for run in re.findall(r"--out (\S+)", PAGE):
        assert (here / run / "weights.csv").is_file()


def test_each_part_is_short_and_none_is_forgotten() -> None:
    files = [ast.parse(text).body for _, text in BLOCKS if FILE.match(text)]
    assert len(files) == 5
    for body in files:
        imports = sum(isinstance(node, ast.Import | ast.ImportFrom) for node in body)
        for node in body:
            assert imports + (node.end_lineno or 0) - node.lineno + 1 < 30
    assert "sample_losses" in {
        node.name for body in files for owner in body for node in ast.walk(owner)
        if isinstance(node, ast.FunctionDef)
    }  # fmt: skip
    for part in ("method", "optimizer", "data", "augment", "student", "loss"):
        assert re.search(rf"--{part} my_\w+:\w+", PAGE), part
