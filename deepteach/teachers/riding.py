"""The trusted set as one more source: a half of it trains along, the other half teaches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.rng import stream
from deepteach.teachers.curriculum import Curriculum, TrainingView
from deepteach.teachers.group import rides
from deepteach.teachers.method import Method, recipe


class Riding(Curriculum):
    """The training set, with trusted samples riding along in every batch.

    The trusted set is parted into halves, alike in their labels. One of them rides: a batch of
    b samples gets `share` b more, drawn from it. The other half teaches and chooses epochs, for
    a sample that is trained on says too little of the student's errors. With fewer than 4
    trusted samples none of them rides.

    Args:
        share: trusted samples for each training sample of a batch, in (0, 1].
        swapped: the halves change places after every epoch, so that every trusted sample
            rides, and none is left that never trained.
        whole: all trusted samples ride; for methods that nobody teaches.

    Raises:
        ConfigError: a share out of range.
    """

    def __init__(self, share: float = 1 / 8, *, swapped: bool = False, whole: bool = False) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"the share of riding samples must lie in (0, 1], got {share}")
        self.share, self.swapped, self.whole = share, swapped, whole

    def choose(self, training: TrainingView, rows: Tensor) -> Tensor:
        half = self._half(training, rides=True)
        if len(half) == 0:
            return rows
        count = max(1, round(self.share * len(rows)))
        generator = stream(training.seed, "riders", training.step)
        drawn = torch.randint(len(half), (count,), generator=generator)
        return torch.cat([rows, len(training.y) + half[drawn]])

    def teaching(self, training: TrainingView) -> Tensor | None:
        half = self._half(training, rides=False)
        return half if len(half) else None

    def judging(self, training: TrainingView) -> Tensor | None:
        return None if self.swapped else self.teaching(training)

    def _half(self, training: TrainingView, *, rides: bool) -> Tensor:
        """Places in the trusted set; the same halves at any time of a run."""
        labels = training.y_valid.cpu()
        if self.whole:
            return torch.arange(len(labels) if rides else 0)
        if len(labels) < 4:
            return torch.zeros(0, dtype=torch.int64)
        order = torch.randperm(len(labels), generator=stream(training.seed, "halves"))
        if labels.dim() == 1:
            order = order[labels[order].argsort(stable=True)]
        turn = training.epoch if self.swapped else 0
        return order[(turn + (not rides)) % 2 :: 2].sort().values


class RidersWeighed(AbstractTeacher):
    """A fixed weight for trusted samples that ride along, beside 1 for all others.

    Args:
        weight: theirs, above 0.

    Raises:
        ConfigError: a weight that is not a positive number.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not 0 < weight < math.inf:
            raise ConfigError(f"the weight of riding samples must be above 0, got {weight}")
        self.weight = weight

    def forward(self, snapshot: Snapshot) -> Tensor:
        return rides(snapshot).to(snapshot.losses.dtype) * math.log(self.weight)


@recipe("riding")
def riding(share: float = 1 / 8, weight: float = 1.0) -> Method:
    """Plain training with all trusted samples riding along at a fixed weight."""
    return Method(RidersWeighed(weight), curriculum=Riding(share, whole=True))
