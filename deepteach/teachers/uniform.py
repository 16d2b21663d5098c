"""Plain training."""

from __future__ import annotations

import torch
from torch import Tensor

from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher


class Uniform(AbstractTeacher):
    """w = 1: plain training, the baseline of every table."""

    def forward(self, snapshot: Snapshot) -> Tensor:
        return torch.zeros_like(snapshot.losses)
