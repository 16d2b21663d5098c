"""What a run trains on from epoch to epoch, and how often its student starts over.

The default curriculum is the training set, once. A control that changes the data, and a teacher
that learns between whole trainings, are courses: the loop knows none of them by name.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deepteach.core.coach import Coach


class TrainingView(Protocol):
    """What a curriculum sees of the training, and may change between steps."""

    coach: Coach
    module: nn.Module
    x: Tensor
    y: Tensor
    x_valid: Tensor
    y_valid: Tensor
    weights: Tensor
    """`(n,)` weight of each training sample when it was last seen."""
    seed: int
    step: int

    @property
    def episode(self) -> int:
        """How often the student has started over."""
        ...

    @property
    def progress(self) -> float:
        """Fraction of the episode done."""
        ...


class Curriculum:
    """The training set, once.

    A sample is named by its row: 0..n-1 are the training samples, n.. the trusted ones. An
    epoch has as many steps as the training set gives, whatever it draws from, so courses
    are compared at equal steps. The last of `episodes` trainings is the one reported.
    """

    episodes: int = 1

    def rows(self, training: TrainingView) -> Tensor:
        """Rows that this epoch draws from."""
        return torch.arange(len(training.y))

    def trusted_labels(self, training: TrainingView) -> Tensor:
        """Labels under which trusted rows are trained on."""
        return training.y_valid

    def choose(self, training: TrainingView, rows: Tensor) -> Tensor:
        """The rows of a step, given those that the epoch's order has for it."""
        return rows

    def epoch_end(self, training: TrainingView) -> None:
        """After each epoch, the student still in train mode."""

    def episode_end(self, training: TrainingView) -> None:
        """After the last epoch of each episode."""

    def state_dict(self) -> dict[str, Any]:
        """What a bit-exact resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
