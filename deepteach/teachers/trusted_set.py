"""Controls that train on the trusted set itself."""

from __future__ import annotations

import torch
from torch import Tensor

from deepteach.errors import ConfigError
from deepteach.teachers.curriculum import Curriculum, TrainingView


class TrustedOnly(Curriculum):
    """The trusted set alone."""

    def rows(self, training: TrainingView) -> Tensor:
        return len(training.y) + torch.arange(len(training.y_valid))


class Merged(Curriculum):
    """The training and the trusted set as one."""

    def rows(self, training: TrainingView) -> Tensor:
        return torch.arange(len(training.y) + len(training.y_valid))


class FineTuned(Curriculum):
    """The training set, then the trusted set for the last `share` of the epochs.

    With the default 1/3 the change falls on the default schedule's first rate drop.
    """

    def __init__(self, share: float = 1 / 3) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"the share of fine-tuning must lie within (0, 1), got {share}")
        self.share = share

    def rows(self, training: TrainingView) -> Tensor:
        if training.progress < 1 - self.share - 1e-9:
            return torch.arange(len(training.y))
        return len(training.y) + torch.arange(len(training.y_valid))
