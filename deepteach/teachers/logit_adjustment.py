"""Logit adjustment: classes shifted by how often they occur, for long tails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepteach.core.losses import SampleLoss
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.teachers.class_indices import class_indices
from deepteach.teachers.curriculum import Curriculum
from deepteach.teachers.method import Method, MethodContext, recipe
from deepteach.teachers.riding import RidersWeighed, Riding
from deepteach.teachers.shaping import Shaping
from deepteach.teachers.trusted_set import FineTuned


class LogitAdjustment(Shaping):
    """The student's loss at the logits z + tau log pi, pi the shares of the training labels.

    Menon et al., Long-tail learning via logit adjustment, ICLR 2021, eq. 10: a student trained
    so balances its errors over the classes when it predicts by z alone. A class without a
    training sample is shifted as one with a single sample. A trusted sample that trains along
    (its index is n or more) is drawn by other shares, and keeps its loss as it is.

    Args:
        counts: training labels of each class.
        tau: strength of the shift; 0 is plain training.

    Raises:
        ConfigError: no counts, or a tau that is negative or not finite; labels that are no class
            indices, when they are first seen.
    """

    def __init__(
        self, counts: Sequence[int], tau: float = 1.0, weighing: AbstractTeacher | None = None
    ) -> None:
        super().__init__(weighing)
        if not (math.isfinite(tau) and tau >= 0):
            raise ConfigError(f"tau must be 0 or more, got {tau}")
        if not sum(counts):
            raise ConfigError(
                "logit adjustment needs how many training labels each class has, and labels that "
                "are quantities have none: use deep, mwn or uniform"
            )
        self.samples = sum(counts)
        self._least = -tau * math.log(self.samples)  # of a class with one sample
        shift = [self._least + tau * math.log(max(count, 1)) for count in counts]
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float64))

    def sample_losses(self, logits: Tensor, snapshot: Snapshot, loss: SampleLoss) -> Tensor:
        labels = class_indices(snapshot, "logit adjustment", "another teacher")
        shift = self.get_buffer("shift").to(logits.dtype)
        spare = logits.shape[1] - len(shift)  # logits of classes that the data do not have
        shift = nn.functional.pad(shift, (0, spare), value=self._least)
        if snapshot.index is not None:
            shift = shift * (snapshot.index < self.samples).unsqueeze(1).to(shift)
        return loss(logits + shift, labels)


@recipe("logit-adjustment")
def logit_adjustment(
    context: MethodContext, tau: float = 1.0, fine_tune: float = 0.0, riding: float = 0.0
) -> Method:
    """Classes shifted by their shares.

    `fine_tune`: the last share of the epochs is trusted. `riding`: trusted samples ride along
    at this weight, one for eight samples.

    Raises:
        ConfigError: both.
    """
    if fine_tune and riding:
        raise ConfigError("fine_tune and riding cannot be combined: choose one")
    if riding:
        weighed = LogitAdjustment(context.counts, tau, RidersWeighed(riding))
        return Method(weighed, curriculum=Riding(whole=True))
    curriculum = FineTuned(fine_tune) if fine_tune else Curriculum()
    return Method(LogitAdjustment(context.counts, tau), curriculum=curriculum)
