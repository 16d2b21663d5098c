"""All adapters in one file, for their libraries take seconds to import.

The lines that docs/integrations.md tells to change, changed in stock scripts that then run; and
two processes, which end with the teacher of one.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_hosts import bert_config, rows, tensors, without
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from transformers import BertForSequenceClassification, TrainingArguments

import deepteach as dt
from deepteach.integrations.huggingface import TeachTrainer
from deepteach.integrations.lightning import Teach

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*' does not have many workers:UserWarning",
    "ignore:The number of training batches:UserWarning",
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
    "ignore:.*LeafSpec.* is deprecated:FutureWarning",
    "ignore:This process .* is multi-threaded:DeprecationWarning",
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


def at_hand_of_transformers(folder: Path) -> dict[str, Any]:
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


def at_hand_of_lightning(folder: Path) -> dict[str, Any]:
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder,
    }  # fmt: skip
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    return {
        "torch": torch,
        "LightningModule": LightningModule,
        "Trainer": partial(Trainer, **quiet),
        "cross_entropy": torch.nn.functional.cross_entropy,
        "loader": DataLoader(TensorDataset(x, y), 8),
        "trusted": (x[:9], y[:9]),
    }


def at_hand_of_skorch(_folder: Path) -> dict[str, Any]:
    x, y = torch.randn(32, 4).numpy(), (torch.arange(32) % 3).numpy()
    layers = (torch.nn.Linear(4, 3), torch.nn.Softmax(1))
    known = {"X": x, "y": y, "X_trusted": x[:9], "y_trusted": y[:9]}
    return {"Module": lambda: torch.nn.Sequential(*layers), **known}


OFFERED = {
    "transformers": at_hand_of_transformers,
    "Lightning": at_hand_of_lightning,
    "skorch": at_hand_of_skorch,
}
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


SIZE = 8
"""Samples of a step, over all processes."""

Answer = dict[str, dict[str, Tensor]]


def teacher() -> dt.Teacher:
    torch.manual_seed(5)
    return dt.Teacher([dt.TrustedProbe(), dt.Loss()])


def labelled() -> tuple[Tensor, Tensor]:
    """40 points of three classes, of which a part has a wrong label."""
    draws = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 3
    x = torch.randn(40, 4, generator=draws) + 3 * torch.eye(4)[y]
    return x, torch.where(torch.rand(40, generator=draws) < 0.4, (y + 1) % 3, y)


def of_transformers(folder: Path, count: int) -> Answer:
    """Five steps, saved at the third; two processes go on from there once more."""

    def trainer() -> TeachTrainer:
        torch.manual_seed(3)
        settings: dict[str, Any] = {
            "output_dir": str(folder), "max_steps": 5, "per_device_train_batch_size": SIZE // count,
            "use_cpu": True, "disable_tqdm": True, "save_strategy": "steps", "save_steps": 3,
            "log_level": "error", "dataloader_pin_memory": False, "report_to": [],
            "learning_rate": 1e-2,
        }  # fmt: skip
        return TeachTrainer(
            *(BertForSequenceClassification(bert_config()), TrainingArguments(**settings)),
            train_dataset=without("truth", rows(40, noise=0.4)),
            trusted_dataset=without("truth", rows(12, seed=1)),
            teacher=teacher(),
            interval=2,
        )

    found: Answer = {}
    for name, path in (("whole", None), ("resumed", str(folder / "checkpoint-3")))[:count]:
        one = trainer()
        one.train(resume_from_checkpoint=path)
        assert one.coach is not None and one.model is not None and one.coach.steps == 5
        assert one.coach.ranks.count == count
        found |= {name: tensors(one.coach.teacher), f"{name} student": tensors(one.model)}
    return found


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.coach.loss(*batch)  # type: ignore[operator, union-attr]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def of_lightning(folder: Path, count: int) -> Answer:
    """Two epochs of five steps; two processes go on from the first one once more."""
    x, wrong = labelled()
    found: Answer = {}
    for name, path in (("whole", None), ("resumed", folder / "epoch=0.ckpt"))[:count]:
        teach = Teach((x[:9], wrong[:9]), teacher(), interval=3, window=2)
        kept: list[Callback] = [ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1), teach]
        settings: dict[str, Any] = {
            "accelerator": "cpu", "devices": count, "max_epochs": 2, "logger": False,
            "enable_progress_bar": False, "enable_model_summary": False, "callbacks": kept,
            "gradient_clip_val": 0.5, "strategy": "ddp" if count > 1 else "auto",
            "use_distributed_sampler": False,
        }  # fmt: skip
        module, data = Classifier(), TensorDataset(x, wrong)
        turn = DistributedSampler(data, count, int(os.environ.get("RANK", 0)), shuffle=False)
        loader = DataLoader(data, SIZE // count, sampler=turn)
        Trainer(**settings).fit(module, loader, ckpt_path=path)
        assert teach.coach is not None and teach.coach.steps == 10
        assert teach.coach.ranks.count == count
        found |= {name: tensors(teach.coach.teacher), f"{name} student": tensors(module)}
    return found


def of_accelerate(_folder: Path, count: int) -> Answer:
    """A loop of one's own around accelerate, which wraps the module; the coach has the bare one."""
    accelerator = Accelerator(cpu=True)
    data = TensorDataset(*labelled())
    module = Classifier().net
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    wrapped, optimizer, loader = accelerator.prepare(
        module, optimizer, DataLoader(data, SIZE // count)
    )
    student = dt.Student(accelerator.unwrap_model(wrapped), "2")
    coach = dt.Coach(student, optimizer, teacher(), interval=3, window=2, clip_norm=0.5)
    for x, y in loader:
        accelerator.backward(coach.loss(x, y))
        accelerator.clip_grad_norm_(wrapped.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        coach.update(tuple(part[:9] for part in labelled()))
    assert coach.steps == 5 and coach.ranks.count == count
    return {"whole": tensors(coach.teacher), "student": tensors(module)}


JOBS = {"accelerate": of_accelerate, "transformers": of_transformers, "Lightning": of_lightning}


def work(job: str, rank: int, port: int, folder: Path) -> None:
    """One of two processes, as torchrun starts them."""
    torch.set_num_threads(1)
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="0", GROUP_RANK="0",
    )  # fmt: skip
    AcceleratorState._reset_state(True)  # the parent process may have trained alone
    PartialState._reset_state()
    torch.save(JOBS[job](folder, 2), folder / f"rank-{rank}.pt")


def both(job: str, folder: Path) -> list[Answer]:
    """What the two processes answered."""
    # What is imported already is shared, where no device's threads stand in the way.
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    processes = [context.Process(target=work, args=(job, r, port, folder)) for r in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"rank-{rank}.pt") for rank in (0, 1)]


def off(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max(float((left[n].double() - right[n].double()).abs().max()) for n in left)


@pytest.mark.parametrize("job", JOBS)
def test_two_processes_are_one(job: str, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    alone = JOBS[job](tmp_path / "alone", 1)
    first, second = both(job, tmp_path)
    for name, found in first.items():
        assert off(found, second[name]) == 0, name
        assert off(found, alone.get(name, found)) < 1e-4, name
    assert off(first["whole"], first.get("resumed", first["whole"])) == 0
