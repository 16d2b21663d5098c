"""Temperatures of scores, found on samples that did not fit what gives the scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 81
"""Temperatures that are tried, from 0.1 to 1000."""


def turns(order: Tensor, folds: int) -> Tensor:
    """The part of each sample, `(n,)`: samples take turns in this order."""
    part = torch.empty_like(order)
    part[order] = torch.arange(len(order), device=order.device) % folds
    return part


def most_likely(log_likelihood: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The temperature with the highest log-likelihood, a scalar of the precision of `like`.

    It is concave in 1 / T, so every tenth is tried, then those around the best.
    """
    grid = torch.logspace(-1, 3, STEPS, dtype=like.dtype, device=like.device).unbind()
    coarse = torch.stack([log_likelihood(t) for t in grid[::10]])
    best = 10 * int(coarse.argmax())
    near = grid[max(best - 9, 0) : best + 10]
    return near[int(torch.stack([log_likelihood(t) for t in near]).argmax())]
