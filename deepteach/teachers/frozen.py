"""A control: every sample keeps the weight that a finished run gave it."""

from __future__ import annotations

import torch
from torch import Tensor

from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.runs.weights import Weights
from deepteach.teachers.curriculum import Curriculum, TrainingView


class Given(AbstractTeacher):
    """Weights that `Frozen` hands over before each step; elsewhere all samples weigh alike."""

    per_sample = False

    def __init__(self) -> None:
        super().__init__()
        self.log_weights: Tensor | None = None

    def forward(self, snapshot: Snapshot) -> Tensor:
        if self.log_weights is None or not torch.is_grad_enabled():
            return torch.zeros_like(snapshot.losses)
        return self.log_weights.to(snapshot.losses)


class Frozen(Curriculum):
    """Every sample keeps the mean weight that it had in a finished run.

    Raises:
        ConfigError: at the first step, where that run had other samples or labels.
    """

    def __init__(self, teacher: Given, weights: Weights) -> None:
        self.teacher, self.weights = teacher, weights
        self.checked = False

    def choose(self, training: TrainingView, rows: Tensor) -> Tensor:
        if not self.checked:
            given = [str(label) for label in training.y.tolist()]
            if given != self.weights.given.tolist():
                raise ConfigError(
                    "the weights are of a run with other training labels: name one with the same "
                    "data, noise and seed as teacher_from"
                )
            self.checked = True
        weights = torch.from_numpy(self.weights.weight)[rows.cpu()]
        self.teacher.log_weights = weights.log().to(training.x.device)
        return rows
