"""The given label mixed with what trusted samples suggest, taught."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepteach.core.losses import SampleLoss
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.teachers.method import Method, recipe
from deepteach.teachers.shaping import Shaping
from deepteach.teachers.trusted_probe import TrustedProbe


class LabelMixing(Shaping):
    """(1 - m) l(z, y) + m l(z, y'), y' the class that the trusted probe finds most likely.

    m = sigmoid(a f + c), f the probe's two numbers for the given label; c starts at `start`, so
    teaching begins near plain training. Until the probe is fitted, and where it agrees with
    the given label, both losses are one. Samples are ranked by log(1 - m) beside their weight.

    Args:
        start: c at first.
        weighing: gives the weights; all alike unless given.
    """

    def __init__(self, *, start: float = -4.0, weighing: AbstractTeacher | None = None) -> None:
        super().__init__(weighing)
        self.probe = TrustedProbe()
        self.slope = nn.Parameter(torch.zeros(self.probe.width))
        self.offset = nn.Parameter(torch.tensor(start))

    def mixed(self, snapshot: Snapshot) -> Tensor:
        """The logit of m, `(batch,)`."""
        return self.probe(snapshot).to(self.slope.dtype) @ self.slope + self.offset

    def log_trust(self, snapshot: Snapshot) -> Tensor:
        trust = nn.functional.logsigmoid(-self.mixed(snapshot))
        return super().log_trust(snapshot) + trust

    def sample_losses(self, logits: Tensor, snapshot: Snapshot, loss: SampleLoss) -> Tensor:
        suggested = self.probe.suggested(snapshot)
        share = self.mixed(snapshot).sigmoid().to(logits.dtype)
        given, other = loss(logits, snapshot.labels), loss(logits, suggested)
        return (1 - share) * given + share * other

    def fit(self, trusted: Snapshot) -> None:
        super().fit(trusted)
        self.probe.fit(trusted)

    @property
    def reads_trusted(self) -> bool:
        return True


@recipe("label-mixing")
def label_mixing() -> Method:
    """Given labels mixed with the trusted probe's, taught how far."""
    return Method(LabelMixing(), teacher_rate=5e-2, window=1)
