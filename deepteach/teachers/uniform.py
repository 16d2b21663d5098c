"""Plain training."""

from __future__ import annotations

import torch
from torch import Tensor

from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.teachers.method import Method, recipe


class Uniform(AbstractTeacher):
    """w = 1: plain training, the baseline of every table."""

    def forward(self, snapshot: Snapshot) -> Tensor:
        return torch.zeros_like(snapshot.losses)


@recipe("uniform")
def uniform() -> Method:
    """Plain training."""
    return Method(Uniform())
