"""A short training on toy data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from toy import CLASSES, dropout

import deepteach as dt
from deepteach.data.augment import identity
from deepteach.data.dataset import Data
from deepteach.teachers.method import Method
from deepteach.training.loop import TrainingLoop
from deepteach.training.schedule import Schedule

SCHEDULE = Schedule(
    epochs=4,
    batch_size=16,
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    milestones=(2, 3),
    interval=3,
    window=2,
    valid_batch=8,
)


def training(data: Data, schedule: Schedule = SCHEDULE, **changes: Any) -> TrainingLoop:
    torch.manual_seed(3)
    student = dt.Student(changes.pop("module", None) or dropout(CLASSES), "fc")
    last = student.module.get_submodule("fc")
    assert isinstance(last, nn.Linear)
    teacher = dt.Teacher([dt.Internal(last.in_features)])
    options: dict[str, Any] = {
        "method": Method(teacher, dt.Reversed()),
        "seed": 0,
        "augment": identity,
        "device": torch.device("cpu"),
    }
    method = changes.pop("method", options.pop("method"))
    return TrainingLoop(data, student, method, schedule, **{**options, **changes})
