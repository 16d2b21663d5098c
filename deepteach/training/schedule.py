"""Length, rates and batches of a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Length and learning rates of a run."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    milestones: tuple[int, ...]
    """Epochs (counted from 0) at whose start the rate is divided by 10."""
    interval: int
    window: int
    valid_batch: int

    def rate(self, epoch: int) -> float:
        """Factor on every learning rate in `epoch`."""
        return 0.1 ** sum(epoch >= milestone for milestone in self.milestones)


def batches(
    count: int, size: int, generator: torch.Generator, length: int | None = None
) -> list[Tensor]:
    """A shuffled epoch, the short last batch kept; one left-over sample joins the last but one.

    A batch of one has no batch statistics. The epoch has `length` samples (default: all):
    it stops early, or shuffles again, where that is not `count`.
    """
    length = count if length is None else length
    rounds = -(-length // count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])
    parts = list(order[:length].split(size))
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def steps_per_epoch(count: int, size: int) -> int:
    """How many batches an epoch has; a rest of one sample joins the batch before it."""
    full, rest = divmod(count, size)
    return max(1, full + (rest > 1))
