"""Length, rates and batches of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deepteach.errors import ConfigError

Shape = Literal["step", "cosine", "constant"]
"""How the rate falls: by 10 at milestones, along half a cosine to 0, or not at all."""


@dataclass(frozen=True)
class Schedule:
    """Length, batches and updates of a run, and the course of its rates."""

    epochs: int
    batch_size: int
    milestones: tuple[float, ...]
    """Epochs done when the rate is divided by 10, where it falls in steps."""
    interval: int
    window: int
    valid_batch: int
    shape: Shape = "step"
    warmup: float = 0.0
    """Epochs in which the rate rises linearly, a step at a time, to its full height."""
    accumulate: int = 1
    """Batches that make up a step."""

    @property
    def step_size(self) -> int:
        """Samples of a step."""
        return self.batch_size * self.accumulate

    def parts(self, count: int) -> int:
        """In how many batches of nearly one size the `count` samples of a step are passed.

        None of them is of one sample, which has no batch statistics, unless all are.
        """
        least = min(self.batch_size, 2)
        return max(1, min(self.accumulate, -(-count // self.batch_size), count // least))

    def rate(self, step: int, per_epoch: int) -> float:
        """Factor on every learning rate at a step (from 0), above 0.

        (t + 1) / W in the W = warmup * per_epoch steps of the warm-up. Beside it, by `shape`:
        0.1 to the number of milestones passed; from the end of the warm-up on
        (1 + cos(pi (t - W) / (T - W))) / 2, T steps in all (Loshchilov & Hutter, ICLR 2017,
        without restarts); or 1.
        """
        rising = self.warmup * per_epoch
        risen = min(1.0, (step + 1) / rising) if rising else 1.0
        match self.shape:
            case "step":
                return risen * 0.1 ** sum(step >= m * per_epoch for m in self.milestones)
            case "cosine":
                done = max(0.0, step - rising) / (self.epochs * per_epoch - rising)
                return risen * 0.5 * (1 + math.cos(math.pi * done))
            case "constant":
                return risen


@dataclass(frozen=True)
class Rates:
    """Learning rates at their full height, one for each parameter group."""

    student: tuple[float, ...]
    teacher: tuple[float, ...]
    follows: bool = True
    """The teacher's rates rise and fall with the student's: Adam removes the meta-gradient's scale,
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
        """Set the rates of both optimizers to `factor` of their full height."""
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
            f"batch_size {size} is more than the {count} training samples: lower batch_size, or, "
            "where a run goes on, give the rows that it began with"
        )
