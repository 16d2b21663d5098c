"""Learning to reweight: free weights of every batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from deepteach.core.adjoint.base import AbstractAdjoint, MetaGradient, Window
from deepteach.core.adjoint.one_step import Lookahead
from deepteach.core.losses import log_of
from deepteach.core.optim import State
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.core.validation import Validation
from deepteach.errors import ConfigError
from deepteach.teachers.method import Method, recipe


class LearningToReweight(AbstractTeacher):
    """Free weights of each batch, from one lookahead step (Ren et al., ICML 2018).

        w~_i = max(<grad l_i(theta), grad L_valid(theta)>, 0),    u = w~ / sum w~

    which is the published derivative at eps = 0, its rate cancelled by the normalisation. A
    batch with all w~ = 0 gives no gradient; `idle` counts them. Nothing is remembered, so
    samples outside the step's batch weigh alike. Use `Coach(..., interval=1, window=1)`.
    """

    normalised = False
    per_sample = False
    idle: Tensor
    free: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("idle", torch.zeros((), dtype=torch.long))
        self.register_buffer("free", torch.zeros(0), persistent=False)
        self.step: int | None = None

    def default_adjoint(self) -> AbstractAdjoint:
        return _FreeWeights(self)

    def assign(self, step: int, slopes: Tensor) -> None:
        """Weights of the batch of that step, from its <grad l_i, grad L_valid>."""
        positive = slopes.clamp(min=0)
        total = positive.sum()
        self.idle += int(total == 0)
        shares = positive / torch.where(total > 0, total, 1.0)
        self.step, self.free = step, log_of(shares * len(shares))

    def forward(self, snapshot: Snapshot) -> Tensor:
        if self.step == snapshot.clock.step and len(self.free) == len(snapshot.losses):
            return self.free.to(snapshot.losses.dtype)
        return torch.zeros_like(snapshot.losses)


class _FreeWeights(Lookahead):
    """Sets the weights of the pending batch; the teacher has no parameters to descend."""

    def __init__(self, teacher: LearningToReweight) -> None:
        super().__init__()
        self.teacher = teacher
        self._given: int | None = None

    def keep(self, state: State, position: int, window: int) -> State | None:
        if self.teacher.step is not None and self.teacher.step == self._given:
            raise ConfigError(
                "LearningToReweight weighs every batch anew, but this one was not weighed: use "
                "Coach(..., interval=1, window=1) and call coach.update after each step"
            )
        self._given = self.teacher.step
        return None

    def gradient(self, window: Window, validation: Validation) -> MetaGradient:
        step, theta = window.steps[-1], window.final.theta
        along = validation.gradient(theta)
        # As derivatives with respect to log weights of 0, slopes come out divided by n.
        teacher, losses = self.teacher, step.snapshot.losses
        teacher.step, teacher.free = step.snapshot.clock.step, torch.zeros_like(losses)
        free = replace(window, omega={"free": teacher.free})
        teacher.assign(teacher.step, self.teacher_part(theta, step, free, along)["free"])
        return MetaGradient({}, None)


@recipe("l2rw")
def l2rw() -> Method:
    """Learning to reweight: free weights of every batch."""
    return Method(LearningToReweight(), interval=1, window=1)
