"""Focal loss as a weight: for clean labels, since it raises the weight of wrong ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepteach.core.given import as_number
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.teachers.class_indices import log_probability
from deepteach.teachers.method import Method, recipe


class Focal(AbstractTeacher):
    """w = (1 - p_y)^gamma, not normalised: L = (1/n) sum w l (Lin et al., ICCV 2017).

    It raises the weight of high losses, wrong labels among them.

    Args:
        gamma: 0 is plain training.
        through: differentiate through w, as the source does; False takes it as a constant
            weight, as the L2T papers describe it.

    Raises:
        ConfigError: a gamma that is negative or not finite; at first use, labels that are no
            class indices.
    """

    normalised = False

    def __init__(self, gamma: float = 2.0, *, through: bool = True) -> None:
        super().__init__()
        if not 0 <= as_number(gamma) < math.inf:
            raise ConfigError(f"Focal's gamma must be a number, 0 or more, got {gamma!r}")
        self.gamma, self.through = gamma, through

    def forward(self, snapshot: Snapshot) -> Tensor:
        # 1 - p from log p keeps its digits near p = 1; at p = 1 the derivative is 0, not NaN.
        rest = -torch.expm1(log_probability(snapshot, "Focal"))
        return self.gamma * rest.clamp(min=torch.finfo(rest.dtype).tiny).log()


@recipe("focal")
def focal(gamma: float = 2.0, through: bool = True) -> Method:
    """Lin et al. 2017; the paper searches gamma in 0.5, 1, 2."""
    return Method(Focal(gamma, through=through))
