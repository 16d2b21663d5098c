"""Length, rates and batches of a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepteach.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """Length, batches and updates of a run, and when its rates drop."""

    epochs: int
    batch_size: int
    milestones: tuple[int, ...]
    """Epochs (counted from 0) at whose start the rate is divided by 10."""
    interval: int
    window: int
    valid_batch: int

    def rate(self, epoch: int) -> float:
        """Factor on every learning rate in `epoch`."""
        return 0.1 ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Rates:
    """Learning rates at the start of a training, one for each parameter group."""

    student: tuple[float, ...]
    teacher: tuple[float, ...]
    follows: bool = True
    """The teacher's rates drop with the student's: Adam removes the meta-gradient's scale,
    which shrinks with the student's rate."""

    @classmethod
    def of(
        cls,
        student: torch.optim.Optimizer,
        teacher: torch.optim.Optimizer | None,
        *,
        follows: bool = True,
    ) -> Rates:
        """The rates that two optimizers have now."""
        return cls(_rates(student), () if teacher is None else _rates(teacher), follows)

    def apply(
        self, student: torch.optim.Optimizer, teacher: torch.optim.Optimizer | None, factor: float
    ) -> None:
        """Set the rates of both optimizers to `factor` of what they were at the start."""
        for group, rate in zip(student.param_groups, self.student, strict=True):
            group["lr"] = rate * factor
        groups = teacher.param_groups if teacher else []
        for group, rate in zip(groups, self.teacher, strict=True):
            group["lr"] = rate * factor if self.follows else rate


def _rates(optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
    return tuple(float(group["lr"]) for group in optimizer.param_groups)


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


def refuse_large_batches(count: int, size: int) -> None:
    """Raise ConfigError where a batch has more samples than there are."""
    if size > count:
        raise ConfigError(
            f"batch_size {size} is more than the {count} training samples: lower batch_size"
        )
