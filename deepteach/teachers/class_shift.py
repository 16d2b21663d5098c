"""Numbers added to the logits of each class: logit adjustment that is taught."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from deepteach.core.losses import SampleLoss
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.teachers.group import rides
from deepteach.teachers.method import Method, MethodContext, recipe
from deepteach.teachers.shaping import Shaping

SURE = 0.01
"""Chance of a false alarm at which two sets of class counts are held for different."""


class ClassShift(Shaping):
    """l(z + b, y), b `(classes,)` a number a class; 0 for trusted samples that ride along.

    With b the logarithm of the classes' frequencies this is logit adjustment (Menon et al.,
    ICLR 2021); here b is taught, from `start` on.

    Args:
        classes: C.
        start: `(C,)` what b begins with; 0 unless given.
        weighing: gives the weights; all alike unless given.

    Raises:
        ConfigError: logits of fewer classes, when they are first seen.
    """

    start: Tensor

    def __init__(
        self,
        classes: int,
        *,
        start: Tensor | None = None,
        weighing: AbstractTeacher | None = None,
    ) -> None:
        super().__init__(weighing)
        self.shift = nn.Parameter(torch.zeros(classes))
        self.register_buffer("start", torch.zeros(classes) if start is None else start.float())

    def sample_losses(self, logits: Tensor, snapshot: Snapshot, loss: SampleLoss) -> Tensor:
        classes = len(self.shift)
        if logits.dim() == 1 and classes == 1:
            return loss(self._shifted(logits.unsqueeze(1), snapshot).squeeze(1), snapshot.labels)
        if logits.dim() != 2 or logits.shape[1] < classes:
            raise ConfigError(
                f"ClassShift({classes}) got logits of shape {tuple(logits.shape)}: expected "
                f"(batch, {classes}) or more columns"
            )
        return loss(self._shifted(logits, snapshot), snapshot.labels)

    def _shifted(self, logits: Tensor, snapshot: Snapshot) -> Tensor:
        shift = nn.functional.pad(self.start + self.shift, (0, logits.shape[1] - len(self.shift)))
        own = 1 - rides(snapshot).to(logits.dtype)
        return logits + own.unsqueeze(1) * shift.to(logits.dtype)


def first_shift(context: MethodContext) -> Tensor:
    """`prior_shift` of the run's labels, a number a logit.

    Of a single logit it is that of the log odds: the shift of 1 less the shift of 0.
    """
    shift = prior_shift(context.counts, context.trusted_counts)
    return shift if context.task.outputs > 1 else shift[1:] - shift[:1]


def prior_shift(given: Sequence[int], trusted: Sequence[int]) -> Tensor:
    """log P(y) of the given labels over that of the trusted ones, `(classes,)`, of mean 0.

    What logit adjustment adds where the trusted labels are balanced. All 0 where the trusted
    counts may well have been drawn from the frequencies of the given labels (Pearson's test),
    so that the accidents of a small trusted set move nothing. Both counts are smoothed by one
    sample a class, spread as the given labels are for the trusted ones.

    Args:
        given: training labels of each class.
        trusted: trusted labels of each class.
    """
    ours = torch.tensor(given, dtype=torch.float64)
    theirs = torch.tensor(trusted, dtype=torch.float64)
    if not len(ours) or len(ours) != len(theirs) or not ours.sum() or not theirs.sum():
        return torch.zeros(len(ours))
    share = (ours + 1) / (ours + 1).sum()
    test = chisquare(theirs.numpy(), (share * theirs.sum()).numpy())
    if not test.pvalue < SURE:
        return torch.zeros(len(ours))
    wanted = (theirs + len(ours) * share) / (theirs.sum() + len(ours))
    shift = share.log() - wanted.log()
    return (shift - shift.mean()).float()


@recipe("class-shift")
def class_shift(context: MethodContext) -> Method:
    """Taught class shifts alone, from 0 on: no class size is known to it."""
    return Method(ClassShift(context.task.outputs), teacher_rate=5e-2, window=1)
