"""One number by which the logits are divided, taught."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepteach.core.losses import SampleLoss
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.teachers.method import Method, recipe
from deepteach.teachers.shaping import Shaping


class Temperature(Shaping):
    """l(z / T, y) with T = exp(t), t taught from 0 on.

    Above 1 it keeps the student from growing sure of labels that may be wrong.

    Args:
        weighing: gives the weights; all alike unless given.
    """

    def __init__(self, weighing: AbstractTeacher | None = None) -> None:
        super().__init__(weighing)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def sample_losses(self, logits: Tensor, snapshot: Snapshot, loss: SampleLoss) -> Tensor:
        return loss(logits / self.log_temperature.exp().to(logits.dtype), snapshot.labels)


@recipe("temperature")
def temperature() -> Method:
    """A taught temperature of the student's logits."""
    return Method(Temperature(), teacher_rate=3e-2, window=1)
