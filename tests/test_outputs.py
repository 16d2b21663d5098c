"""The blocks of docs/outputs.md run, in their order, on one problem."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from paths import ROOT
from torch.utils.data import DataLoader, TensorDataset
from toy import arrays

import deepteach
from deepteach.models import Mlp

PAGE = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:May not flag")  # cleanlab's, of few samples
def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = {name: torch.as_tensor(array) for name, array in arrays(train=120).items()}
    x, y = data["x_train"], data["y_train"]
    wrong = torch.where(torch.arange(120) % 4 == 1, (y + 1) % 3, y)
    known = {
        "dt": deepteach, "model": Mlp((8,), 3), "x": x, "y": wrong, "torch": torch,
        "x_valid": data["x_valid"], "y_valid": data["y_valid"],
        "DataLoader": DataLoader, "TensorDataset": TensorDataset,
    }  # fmt: skip
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(block, "outputs.md", "exec"), known)
    assert len(known["cleaned_dataset"](known["result"], known["mine"])) < 120
    assert len(list(known["loader"])) == 2 and len(known["clean"]) <= 120
