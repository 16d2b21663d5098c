"""What the documents point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import deepteach
from deepteach.models import Mlp

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
FILE = re.compile(r"\b((?:deepteach|docs|experiments|results|tests)/[\w/-]+\.\w+)")
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


def test_the_readme_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks, in their order, on a problem of three classes."""
    monkeypatch.chdir(tmp_path)
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 3
    inputs = torch.randn(160, 4, generator=draws) + 3 * torch.eye(4)[labels]
    (x, x_valid), (y, y_valid) = inputs.split([120, 40]), labels.split([120, 40])
    batches = list(zip(x.split(20), y.split(20), strict=True))
    names: dict[str, object] = {
        "torch": torch, "model": Mlp((4,), 3), "scheduler": Still(), "train_loader": batches * 4,
        "valid_loader": [(x_valid, y_valid)], "x": x, "y": y, "x_valid": x_valid,
        "y_valid": y_valid, "x_test": inputs, "y_test": labels, "X": x.numpy(),
        "Xv": x_valid.numpy(), "yv": y_valid.numpy(),
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert len(blocks) >= 3
    for block in blocks:
        known = {"dt": deepteach, **names}  # a block changes nothing for the next
        exec(compile(block, "README.md", "exec"), known)
    for picture in ("weights.svg", "map.svg"):
        assert Path(picture).stat().st_size > 1000


class Still:
    """A schedule that changes nothing."""

    def step(self) -> None:
        pass


def test_they_are_found() -> None:
    assert {"README.md", "LOG.md", "design.md", "methods.md"} <= {page.name for page in PAGES}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert LINK.findall(readme) and FILE.findall(readme)
