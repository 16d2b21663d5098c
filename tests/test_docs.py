"""What the documents point to is there."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

import deepteach

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
FILE = re.compile(r"\b((?:deepteach|docs|examples|experiments|results|tests)/[\w/-]+\.\w+)")
TEST = re.compile(r"(test_\w+)\.py::(test_\w+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        assert (page.parent / target).exists(), target
    for name in FILE.findall(text):
        assert (ROOT / name).is_file(), name
    for file, test in TEST.findall(text):
        found = list(ROOT.glob(f"tests/**/{file}.py"))
        assert len(found) == 1 and f"def {test}" in found[0].read_text(), f"{file}::{test}"


DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def test_the_design_page_shows_the_house_as_it_is() -> None:
    """Files that it names are there, every folder is named, and the layers are those tested."""
    package = ROOT / "deepteach"
    for name in re.findall(r"[\w/]+\.py\b", DESIGN):
        assert [*package.rglob(name), *ROOT.glob(name), *ROOT.glob(f"experiments/{name}")], name
    tree = DESIGN.split("## The tree")[1].split("```")[1]
    for entry in package.iterdir():
        if entry.suffix == ".py" and not entry.name.startswith("_"):
            assert re.search(rf"\b{entry.name}\b", tree), entry.name
        elif (entry / "__init__.py").is_file():
            assert f"  {entry.name}/ " in tree, entry.name
    core = [file for file in (package / "core").glob("[!_]*.py") if file.stem not in MINOR]
    for file in core:
        assert re.search(rf"[ /]{file.name}\b", tree), file.name
    checked = (ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8")
    layers = re.findall(r"^    \"([a-z ]+)\",$", checked, re.M)
    assert DESIGN.split("```layers\n")[1].split("```")[0].splitlines() == layers


MINOR = ("distributed_batch", "nested", "predict", "training_pass", "trusted_batches")
"""Files of the engine that its map need not show."""


PROSE = (
    "design",
    "extending",
    "paper",
    "performance",
    "distributed",
    "reliability",
    "methods",
    "objectives",
    "data",
    "outputs",
    "tour",
    "choosing",
    "mathematics",
    "guides/own-loop",
    "guides/own-teacher",
    "guides/sources",
    "guides/wrong-labels",
)


@pytest.mark.parametrize("page", PROSE)
def test_every_symbol_of_the_pages_exists(page: str) -> None:
    """`Class`, `Class.member` and `module.name` are found in the package, or in torch."""
    modules = [import_module(name) for name in names_of_modules()]
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(?:dt\.)?([A-Z]\w*[a-z]\w*)\b[^`]*`", text):
        found = any(hasattr(module, name) for module in (*modules, *TORCH))
        assert found, f"{page}.md: {name}"
    for owner, member in re.findall(r"`(?:dt\.)?(\w+)\.(\w+)(?:\([^`]*)?`", text):
        if owner in ELSEWHERE or owner.startswith("test_") or member in ENDINGS:
            continue
        if owner == "dt":
            assert hasattr(deepteach, member), f"{page}.md: dt.{member}"
            continue
        homes = [
            module
            for module in modules
            if hasattr(getattr(module, owner, None), member)
            or (module.__name__.rpartition(".")[2] == owner and hasattr(module, member))
        ]
        assert homes, f"{page}.md: {owner}.{member}"


TORCH = (torch.nn.parallel, torch.overrides, torch.utils.data)
ELSEWHERE = ("torch", "optimizer", "coach", "ledger", "result")
"""First words that are torch's, or a variable of the reader's."""
ENDINGS = ("py", "md", "csv", "json", "yml", "log", "yaml", "npz", "safetensors", "toml", "lock")


HOSTS = ("huggingface", "lightning", "skorch")
"""Adapters, which are imported with the library that they are for, in seconds."""


def names_of_modules() -> list[str]:
    """All modules of the package but those of `HOSTS`."""
    package = ROOT / "deepteach"
    return [
        ".".join(["deepteach", *file.relative_to(package).with_suffix("").parts])
        for file in sorted(package.rglob("*.py"))
        if not file.name.startswith("__") and file.stem not in HOSTS
    ]


def test_they_are_found() -> None:
    names = {"README.md", "LOG.md", "design.md", "methods.md", "tour.md", "wrong-labels.md"}
    assert names <= {page.name for page in PAGES}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert LINK.findall(readme) and FILE.findall(readme)
