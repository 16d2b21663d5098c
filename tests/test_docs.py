"""What the documents point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
FILE = re.compile(r"\b((?:deepteach|docs|experiments|results|tests)/\w+\.\w+)")
TEST = re.compile(r"(test_\w+)\.py::(test_\w+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        assert (page.parent / target).exists(), target
    for name in FILE.findall(text):
        assert (ROOT / name).is_file(), name
    for file, test in TEST.findall(text):
        assert f"def {test}" in (ROOT / "tests" / f"{file}.py").read_text(), f"{file}::{test}"


def test_they_are_found() -> None:
    assert {"README.md", "LOG.md", "design.md", "methods.md"} <= {page.name for page in PAGES}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert LINK.findall(readme) and FILE.findall(readme)
