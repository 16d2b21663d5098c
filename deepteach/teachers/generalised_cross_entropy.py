"""Generalised cross-entropy: a loss between -log p and 1 - p, as a weight."""

from __future__ import annotations

import math

from torch import Tensor

from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.teachers.class_indices import log_probability
from deepteach.teachers.method import Method, recipe


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
        return self.q * log_probability(snapshot, "GeneralisedCrossEntropy")


@recipe("gce")
def gce(q: float = 0.7) -> Method:
    """Generalised cross-entropy."""
    return Method(GeneralisedCrossEntropy(q))
