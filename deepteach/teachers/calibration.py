"""Temperatures of scores, found on samples that did not fit what gives the scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 81
"""Temperatures that are tried, from 0.1 to 1000."""

SCORES_AT_ONCE = 2**22
"""Numbers that are scored at once, at most."""


def most_likely(log_likelihood: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The temperature with the highest log-likelihood, a scalar of the precision of `like`.

    It is concave in 1 / T, so every tenth is tried, then those around the best.

    Args:
        log_likelihood: of temperatures `(t, 1, ...)`, one dimension more than `like`; `(t,)`.
        like: what is divided by them.
    """
    grid = torch.logspace(-1, 3, STEPS, dtype=like.dtype, device=like.device)
    size = max(SCORES_AT_ONCE // max(like.numel(), 1), 1)

    def best(tried: Tensor) -> int:
        shape = (-1, *(1 for _ in range(like.dim())))
        found = [log_likelihood(part.view(shape)) for part in tried.split(size)]
        return int(torch.cat(found).argmax())

    near = 10 * best(grid[::10])
    near = grid[max(near - 9, 0) : near + 10]
    return near[best(near)].clone()
