"""What a run trains on from epoch to epoch, and how often its student starts over.

The default curriculum is the training set, once. A control that trains on other samples, and a
teacher that learns from whole trainings, have curricula of their own, which the loop calls at the
places named here and knows nothing else of. What the loop shows them is a `TrainingView`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deepteach.core.coach import Coach
from deepteach.data.rows import Samples


class TrainingView(Protocol):
    """What a curriculum sees of the training.

    It changes nothing here but `weights`, and of the coach its teacher. Symbols: n training
    samples.
    """

    coach: Coach
    module: nn.Module
    x: Samples
    y: Tensor
    x_valid: Tensor
    y_valid: Tensor
    weights: Tensor
    """`(n,)` weight of each training sample when it was last seen."""
    seed: int
    step: int

    @property
    def epoch(self) -> int:
        """Epochs done, over all episodes."""
        ...

    @property
    def episode(self) -> int:
        """How often the student has started over."""
        ...

    @property
    def epochs(self) -> int:
        """Epochs of the episode."""
        ...

    @property
    def progress(self) -> float:
        """Fraction of the episode done."""
        ...


class Curriculum:
    """The training set, once.

    Subclass it and override what differs. A sample is named by its row: 0..n-1 are the
    training samples, n.. the trusted ones. An epoch has as many steps as the training set
    gives, whatever it draws from, so methods are compared at equal steps.

    An episode is one whole training, from the student's initial state on. The last of
    `episodes` is the one reported; those before it warm up what the teacher needs.
    """

    reads_classes: bool = False
    """It reads labels as class numbers, and serves no task with others."""
    episodes: int = 1
    """Trainings in all."""

    def epochs_of(self, episode: int, epochs: int) -> int:
        """Epochs of an episode of a run of `epochs`: of the last, all of them.

        A shorter one follows the beginning of the run's schedule.
        """
        return epochs

    def rows(self, training: TrainingView) -> Tensor:
        """Rows `(any,)` that this epoch draws from, asked for at its start and on a resume."""
        return torch.arange(len(training.y))

    def trusted_labels(self, training: TrainingView) -> Tensor:
        """Labels, one a trusted sample, under which trusted rows are trained on."""
        return training.y_valid

    def choose(self, training: TrainingView, rows: Tensor) -> Tensor:
        """The rows of a step, from the `rows` that the epoch's order has for it; no fewer."""
        return rows

    def added(self, training: TrainingView, count: int) -> int:
        """How many rows `choose` puts behind the `count` of the order, if it only does that.

        Each of several processes then reads no more than its part of a batch.
        """
        return 0

    def teaching(self, training: TrainingView) -> Tensor | None:
        """Places in the trusted set whose samples may teach now; None for all of them."""
        return None

    def judging(self, training: TrainingView) -> Tensor | None:
        """Places in the trusted set by which epochs are compared; None for all of them.

        Where some of them train along, those that never do.
        """
        return None

    def epoch_end(self, training: TrainingView) -> None:
        """After each epoch, the student still in train mode."""

    def episode_end(self, training: TrainingView) -> None:
        """After the last epoch of each episode, and its `epoch_end`."""

    def ranking(self, training: TrainingView) -> Tensor | None:
        """`(n,)` how far each training sample's label is trusted at the end, the higher the more.

        None: as far as its mean weight says.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a bit-exact resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
