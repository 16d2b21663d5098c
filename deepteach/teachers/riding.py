"""The trusted set as one more source: a part of it trains along while the rest teaches."""

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

RIDING_SHARE = 1 / 8
"""Of a batch, that many riding samples for each training sample, at least."""

OFTENEST = 12
"""Times that a riding sample is drawn for each time that a training sample is, at most."""

_PARTS = 5
"""Of the trusted set: two ride by turns, two more take their place, and one never trains."""


class Riding(Curriculum):
    """The training set, with trusted samples riding along in every batch.

    A fifth of the trusted set never trains: it teaches in every epoch, and it alone chooses
    epochs. The rest is parted into halves that change places after every epoch: one rides, and
    the other teaches, for a sample that is trained on says too little of the student's errors.
    All parts are alike in their labels. A batch of b samples gets `share` b more, drawn from the
    half that rides. With fewer than 5 trusted samples none of them rides.

    Args:
        share: trusted samples for each training sample of a batch, in (0, 1]. Unless given,
            `RIDING_SHARE`; more where those that ride would otherwise be drawn less often than
            training samples are, of a large trusted set; less where they would be drawn more than
            `OFTENEST` times as often, of a small one, and learned by heart.
        whole: all trusted samples ride; for methods that nobody teaches.

    Raises:
        ConfigError: a share out of range.
    """

    def __init__(self, share: float | None = None, *, whole: bool = False) -> None:
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"the share of riding samples must lie in (0, 1], got {share}")
        self.share, self.whole = share, whole
        self._parted: tuple[Tensor, Tensor] | None = None

    def choose(self, training: TrainingView, rows: Tensor) -> Tensor:
        riding = self._riding(training).nonzero().squeeze(1)
        if len(riding) == 0:
            return rows
        generator = stream(training.seed, "riders", training.step)
        count = self._count(training, len(riding), len(rows))
        drawn = torch.randint(len(riding), (count,), generator=generator)
        return torch.cat([rows, len(training.y) + riding[drawn]])

    def added(self, training: TrainingView, count: int) -> int:
        return self._count(training, int(self._riding(training).sum()), count)

    def _count(self, training: TrainingView, riding: int, count: int) -> int:
        """How many of `riding` samples are added to a batch of `count`."""
        often = riding / len(training.y)
        share = RIDING_SHARE if self.whole else min(max(RIDING_SHARE, often), OFTENEST * often)
        return max(1, round((self.share or share) * count)) if riding else 0

    def teaching(self, training: TrainingView) -> Tensor | None:
        riding = self._riding(training)
        return None if self.whole or not riding.any() else (~riding).nonzero().squeeze(1)

    def judging(self, training: TrainingView) -> Tensor | None:
        parts = self._parts(training)
        return None if self.whole or len(parts) < _PARTS else (parts == 0).nonzero().squeeze(1)

    def _riding(self, training: TrainingView) -> Tensor:
        """`(trusted,)` bool: which samples may ride in this epoch."""
        parts = self._parts(training)
        if self.whole:
            return torch.ones_like(parts, dtype=torch.bool)
        if len(parts) < _PARTS:
            return torch.zeros_like(parts, dtype=torch.bool)
        return (parts > 0) & (parts % 2 == training.epoch % 2)

    def _parts(self, training: TrainingView) -> Tensor:
        """`(trusted,)` a sample's part, 0 to 4; drawn once, and the same in a resumed run."""
        if self._parted is None or self._parted[0] is not training.y_valid:
            self._parted = (training.y_valid, self._drawn(training))
        return self._parted[1]

    @staticmethod
    def _drawn(training: TrainingView) -> Tensor:
        labels = training.y_valid.cpu()
        order = torch.randperm(len(labels), generator=stream(training.seed, "halves"))
        if labels.dim() == 1:
            order = order[labels[order].argsort(stable=True)]
        parts = torch.empty(len(labels), dtype=torch.int64)
        parts[order] = torch.arange(len(labels)) % _PARTS
        return parts


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
def riding(share: float = RIDING_SHARE, weight: float = 1.0) -> Method:
    """Plain training with all trusted samples riding along at a fixed weight."""
    return Method(RidersWeighed(weight), curriculum=Riding(share, whole=True))
