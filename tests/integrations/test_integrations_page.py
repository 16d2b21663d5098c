"""The lines that docs/integrations.md tells to change, changed in stock scripts that then run."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from tiny_hosts import bert_config, rows, without
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertForSequenceClassification, TrainingArguments

import deepteach as dt

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*' does not have many workers:UserWarning",
    "ignore:The number of training batches:UserWarning",
    "ignore:.*LeafSpec.* is deprecated:FutureWarning",
)

PAGE = (Path(dt.__file__).parent.parent / "docs" / "integrations.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| *(\w*) *\| (?:`([^`]+)` )?\| `([^`]+)` \|$", re.M)

STOCK = {
    "transformers": """
from transformers import Trainer
trainer = Trainer(model, args, train_dataset=train)
trainer.train()
""",
    "Lightning": """
class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = cross_entropy(self(x), y)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

trainer = Trainer(max_epochs=2)
trainer.fit(Module(), loader)
""",
    "skorch": """
from skorch import NeuralNetClassifier
net = NeuralNetClassifier(Module, max_epochs=3)
net.set_params(verbose=0, batch_size=8, train_split=None).fit(X, y)
""",
}


def told(library: str) -> list[tuple[str, str]]:
    """The rows of a library, each a line and what becomes of it; a new one has no line."""
    found, owner = [], ""
    for name, line, changed in ROW.findall(PAGE):
        owner = name or owner
        if owner == library:
            found.append((line, changed))
    return found


def of_transformers(folder: Path) -> dict[str, Any]:
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


def of_lightning(folder: Path) -> dict[str, Any]:
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder,
    }  # fmt: skip
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    return {
        "torch": torch,
        "LightningModule": lightning.LightningModule,
        "Trainer": partial(lightning.Trainer, **quiet),
        "cross_entropy": torch.nn.functional.cross_entropy,
        "loader": DataLoader(TensorDataset(x, y), 8),
        "trusted": (x[:9], y[:9]),
    }


def of_skorch(_folder: Path) -> dict[str, Any]:
    x, y = torch.randn(32, 4).numpy(), (torch.arange(32) % 3).numpy()
    layers = (torch.nn.Linear(4, 3), torch.nn.Softmax(1))
    known = {"X": x, "y": y, "X_trusted": x[:9], "y_trusted": y[:9]}
    return {"Module": lambda: torch.nn.Sequential(*layers), **known}


OFFERED = {"transformers": of_transformers, "Lightning": of_lightning, "skorch": of_skorch}
"""What a stock script of a library has at hand."""


@pytest.mark.parametrize("library", STOCK)
def test_three_lines_at_most_teach(library: str, tmp_path: Path) -> None:
    script, changes = STOCK[library], told(library)
    assert 1 <= len(changes) <= 3
    for line, changed in changes:
        assert not line or script.count(f"{line}\n") == 1, line
        script = script.replace(f"{line}\n", f"{changed}\n", 1)
    for text, taught in ((STOCK[library], False), (script, True)):
        torch.manual_seed(0)
        names = OFFERED[library](tmp_path)
        exec(compile(text, library, "exec"), names)
        owner = names.get("trainer", names.get("net"))
        owners = (owner, *(getattr(owner, "callbacks", None) or ()))
        found = [getattr(one, name, None) for one in owners for name in ("coach", "coach_")]
        coach = next(filter(None, found), None)
        assert (coach is not None and coach.last_record is not None) == taught
