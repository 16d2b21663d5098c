"""The student's optimizers by the names that settings call them.

Each is made of the parameters, `lr`, `momentum` and `weight_decay`; a user's own
`package.module:name` takes those of them that it names.
"""

from __future__ import annotations

from typing import Protocol

import torch

from deepteach.core.adjoint.fixed_point import ExactSGD
from deepteach.teachers.method import Parameters


class MakeOptimizer(Protocol):
    """From the settings of a run to its optimizer."""

    def __call__(
        self, params: Parameters, *, lr: float, momentum: float, weight_decay: float
    ) -> torch.optim.Optimizer: ...


def sgd(
    params: Parameters, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Momentum SGD, as in the paper."""
    return torch.optim.SGD(params, lr, momentum, weight_decay=weight_decay)


def nesterov(
    params: Parameters, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with Nesterov's momentum, which must be above 0."""
    return torch.optim.SGD(params, lr, momentum, weight_decay=weight_decay, nesterov=True)


def adam(
    params: Parameters, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adam; `momentum` is its beta_1, so that no setting is without effect."""
    betas = (momentum, 0.999)
    return torch.optim.Adam(params, lr, betas, weight_decay=weight_decay)


def adamw(
    params: Parameters, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay; `momentum` is its beta_1."""
    betas = (momentum, 0.999)
    return torch.optim.AdamW(params, lr, betas, weight_decay=weight_decay)


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": sgd,
    "nesterov": nesterov,
    "adam": adam,
    "adamw": adamw,
    "exact-sgd": ExactSGD,
}
