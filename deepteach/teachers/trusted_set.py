"""Controls that train on the trusted set itself."""

from __future__ import annotations

import torch
from torch import Tensor

from deepteach.errors import ConfigError
from deepteach.teachers.curriculum import Curriculum, TrainingView
from deepteach.teachers.method import Method, recipe
from deepteach.teachers.uniform import Uniform


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

    With the default 1/3 the change falls on the default schedule's first rate drop. It is the
    last epoch at least: of a single one, that one.
    """

    def __init__(self, share: float = 1 / 3) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"the share of fine-tuning must lie within (0, 1), got {share}")
        self.share = share

    def rows(self, training: TrainingView) -> Tensor:
        # By whole epochs: an epoch that a resume begins in its middle is what it was.
        tuned = max(1, int(self.share * training.epochs + 1e-9))
        if training.epoch < training.epochs - tuned:
            return torch.arange(len(training.y))
        return len(training.y) + torch.arange(len(training.y_valid))


@recipe("trusted-only")
def trusted_only() -> Method:
    """Plain training on the trusted set alone."""
    return Method(Uniform(), curriculum=TrustedOnly())


@recipe("merged")
def merged() -> Method:
    """Plain training on the training and the trusted set as one."""
    return Method(Uniform(), curriculum=Merged())


@recipe("fine-tune")
def fine_tune(share: float = 1 / 3) -> Method:
    """Plain training, then the trusted set for the last share of the epochs."""
    return Method(Uniform(), curriculum=FineTuned(share))
