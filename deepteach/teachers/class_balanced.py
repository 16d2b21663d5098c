"""Fixed weights against unequal classes: the rarer its label, the more a sample weighs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.teachers.class_indices import class_indices
from deepteach.teachers.method import Method, MethodContext, recipe


class ClassBalanced(AbstractTeacher):
    """w = (1 - beta) / (1 - beta^n_y), n_y the number of training labels y.

    The inverse of the effective number of samples (Cui et al., CVPR 2019); at beta = 1 its limit
    1 / n_y, the inverse class frequency; at beta = 0 plain training. The paper scales the weights
    to a sum of C over the classes; here they are divided by their sum in the batch, as torch's
    cross-entropy does with class weights. A class without a training sample weighs as one with a
    single sample.

    Args:
        counts: training labels of each class.
        beta: in [0, 1]; 0.9 to 0.9999 as published.

    Raises:
        ConfigError: no counts, or a beta out of range; labels that are no class indices, when
            they are first seen.
    """

    def __init__(self, counts: Sequence[int], beta: float = 0.999) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise ConfigError(f"beta must lie in [0, 1], got {beta}")
        if not sum(counts):
            raise ConfigError(
                "class-balanced needs how many training labels each class has, and labels that are "
                "quantities have none: use deep, mwn or uniform"
            )
        numbers = [_effective_number(max(count, 1), beta) for count in counts]
        self.register_buffer("log_weights", -torch.tensor(numbers, dtype=torch.float64).log())

    def forward(self, snapshot: Snapshot) -> Tensor:
        labels = class_indices(snapshot, "class-balanced", "another teacher")
        return self.get_buffer("log_weights")[labels.clamp(min=0)].to(snapshot.losses.dtype)


def _effective_number(count: int, beta: float) -> float:
    """(1 - beta^n) / (1 - beta) = 1 + beta + ... + beta^(n-1)."""
    if beta in (0, 1):
        return float(count) if beta else 1.0
    return -math.expm1(count * math.log(beta)) / (1 - beta)


@recipe("class-balanced")
def class_balanced(context: MethodContext, beta: float = 0.999) -> Method:
    """Weights by the effective number of samples of the given label's class."""
    return Method(ClassBalanced(context.counts, beta))
