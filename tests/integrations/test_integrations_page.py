"""The lines that docs/integrations.md tells to change, changed in stock scripts that then run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hosts import bert_config, rows, without
from transformers import BertForSequenceClassification, TrainingArguments

import deepteach as dt

PAGE = (Path(dt.__file__).parent.parent / "docs" / "integrations.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| *(\w*) *\| `([^`]+)` \| `([^`]+)` \|$", re.M)

STOCK = {
    "transformers": """
from transformers import Trainer
trainer = Trainer(model, args, train_dataset=train)
trainer.train()
""",
}


def told(library: str) -> list[tuple[str, str]]:
    """The rows of a library, each a line and what becomes of it."""
    found, owner = [], ""
    for name, line, changed in ROW.findall(PAGE):
        owner = name or owner
        if owner == library:
            found.append((line, changed))
    return found


def offered(library: str, folder: Path) -> dict[str, Any]:
    """What a script of that library has at hand."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 4, "per_device_train_batch_size": 8,
        "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "log_level": "error",
        "dataloader_pin_memory": False, "report_to": [],
    }  # fmt: skip
    return {
        "model": BertForSequenceClassification(bert_config()),
        "args": TrainingArguments(**settings),
        "train": without("truth", rows(32, noise=0.4)),
        "trusted": without("truth", rows(12, seed=1)),
    }


@pytest.mark.parametrize("library", STOCK)
def test_three_lines_at_most_teach(library: str, tmp_path: Path) -> None:
    script, changes = STOCK[library], told(library)
    assert 1 <= len(changes) <= 3
    for line, changed in changes:
        assert script.count(f"{line}\n") == 1, line
        script = script.replace(f"{line}\n", f"{changed}\n")
    for text, taught in ((STOCK[library], False), (script, True)):
        names = offered(library, tmp_path)
        exec(compile(text, library, "exec"), names)
        coach = getattr(names["trainer"], "coach", None)
        assert (coach is not None and coach.last_record is not None) == taught
