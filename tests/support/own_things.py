"""What a user may bring along by `own_things:NAME`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import deepteach as dt


def plain_sgd(params: Any, lr: float) -> torch.optim.Optimizer:
    """Without momentum: its steps cannot be undone."""
    return torch.optim.SGD(params, lr)


def two_rates(params: Any, lr: float, momentum: float) -> torch.optim.Optimizer:
    """Weights and biases in groups of their own."""
    leaves = list(params)
    groups = [
        {"params": [leaf for leaf in leaves if leaf.dim() > 1]},
        {"params": [leaf for leaf in leaves if leaf.dim() == 1], "lr": lr / 10},
    ]
    return torch.optim.SGD(groups, lr, momentum=momentum)


def no_optimizer(params: Any) -> int:
    return len(list(params))


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)


def averaged(logits: Tensor, labels: Tensor) -> Tensor:
    """A mistake: one number for the batch."""
    return nn.functional.cross_entropy(logits, labels)


def jittered(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


class Temperamental(nn.Sequential):
    """Raises in the first step that it is trained by."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.training and torch.is_grad_enabled():
            raise ValueError("not today")
        return super().forward(x)


def temperamental(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    student = Temperamental()
    student.add_module("fc", nn.Linear(input_shape[0], classes))
    return student


class BySource(dt.Feature):
    """Which source a sample is from, so that a linear teacher learns one number for each."""

    def __init__(self, sources: int = 3) -> None:
        super().__init__()
        self.width = sources

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        assert snapshot.group is not None, "this feature needs the source of every sample"
        return nn.functional.one_hot(snapshot.group, self.width).to(snapshot.losses)


NUMBER = 3
