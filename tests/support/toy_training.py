"""A short training on toy data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from toy import CLASSES, dropout

import deepteach as dt
from deepteach.data.dataset import Data
from deepteach.distributed.collectives import Ranks
from deepteach.teachers.method import Method
from deepteach.training.build import Built, assemble
from deepteach.training.choices import Overrides
from deepteach.training.config import make
from deepteach.training.loop import TrainingLoop
from deepteach.training.schedule import Schedule

SCHEDULE = Schedule(epochs=4, batch_size=16, milestones=(2, 3), interval=3, window=2, valid_batch=8)
LR = 0.1


def built(data: Data, schedule: Schedule = SCHEDULE, **changes: Any) -> Built:
    """A training that is about to begin; `changes` are a module, a method, or settings."""
    torch.manual_seed(3)
    student = dt.Student(changes.pop("module", None) or dropout(CLASSES), "fc")
    last = student.module.get_submodule("fc")
    assert isinstance(last, nn.Linear)
    method = Method(dt.Teacher([dt.Internal(last.in_features)]), dt.Reversed())
    method = changes.pop("method", method)
    overrides = Overrides(augment=changes.pop("augment", None))
    config = make({"data": "toy", "lr": LR, **changes})
    return assemble(config, data, student, method, schedule, overrides, Ranks())


def training(data: Data, schedule: Schedule = SCHEDULE, **changes: Any) -> TrainingLoop:
    return built(data, schedule, **changes).loop
