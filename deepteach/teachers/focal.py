"""Focal loss and generalised cross-entropy as weights of the loss's own probability."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepteach.core.losses import log_probability
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError


class Focal(AbstractTeacher):
    """w = (1 - p_y)^gamma, not normalised: L = (1/n) sum w l (Lin et al., ICCV 2017).

    The source differentiates through w; `through=False` takes it as a constant weight, as
    the L2T papers describe it. It raises the weight of high losses, wrong labels among them.
    """

    normalised = False

    def __init__(self, gamma: float = 2.0, *, through: bool = True) -> None:
        super().__init__()
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ConfigError(f"Focal's gamma must be 0 or more, got {gamma}")
        self.gamma, self.through = gamma, through

    def forward(self, snapshot: Snapshot) -> Tensor:
        # 1 - p from log p keeps its digits near p = 1; at p = 1 the derivative is 0, not NaN.
        rest = -torch.expm1(log_probability(snapshot))
        return self.gamma * rest.clamp(min=torch.finfo(rest.dtype).tiny).log()


class GeneralisedCrossEntropy(AbstractTeacher):
    """The loss (1 - p_y^q) / q, as the weight p_y^q (Zhang & Sabuncu, NeurIPS 2018).

    Its gradient is p_y^q times that of -log p_y, so a constant weight p_y^q, not normalised,
    trains exactly as it does. q = 0.7 as published; the truncated variant is not here.
    """

    normalised = False

    def __init__(self, q: float = 0.7) -> None:
        super().__init__()
        if not (math.isfinite(q) and 0 < q <= 1):
            raise ConfigError(f"q must be above 0 and at most 1, got {q}")
        self.q = q

    def forward(self, snapshot: Snapshot) -> Tensor:
        return self.q * log_probability(snapshot)
