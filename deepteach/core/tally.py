"""Means over the steps of a training, found for many steps at once, when somebody asks.

A step that does not update the teacher waits for no number: on an accelerator it would wait for
the device, and on a small student the few operations a step are a part of its cost.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from deepteach.core.batches.ignored import mean_counted, not_left_out
from deepteach.core.later import Later
from deepteach.core.losses import effective_fraction, of_counted
from deepteach.core.snapshot import Snapshot

UNREAD = 64
"""Steps that wait at most."""

LONGEST = 4096
"""A row of a matrix is summed as a vector is, to the last bit, up to this length (tests/core)."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    weights: Tensor
    losses: Tensor
    left_out: Tensor | None
    mean: Later

    @property
    def kind(self) -> tuple:
        """What steps have in common that are read together; None of it where they cannot be."""
        size = len(self.weights)
        alone = id(self) if size > LONGEST else 0
        kinds = self.weights.dtype, self.losses.dtype, self.losses.device
        return size, *kinds, self.left_out is None, alone


class Tally:
    """The mean loss of the steps so far, and the sum of their effective sample sizes."""

    def __init__(self) -> None:
        self._total = torch.zeros(())
        self._mean, self._steps = 0.0, 0
        self._waiting: list[_Waiting] = []

    def start(self, mean: float, steps: int) -> None:
        """Go on after steps of this mean loss."""
        self.read()
        self._mean, self._steps = mean, steps

    def add(self, weights: Tensor, snapshot: Snapshot) -> Later:
        """A step was taken on this batch; the mean loss of all steps then."""
        mean = Later(self.read)
        self._waiting.append(_Waiting(weights, snapshot.losses, snapshot.ignored(), mean))
        if len(self._waiting) >= UNREAD:
            self.read()
        return mean

    def add_known(self, loss: float, effective: Tensor, like: Tensor) -> float:
        """The same of a step whose figures are known, in the precision of its weights."""
        self.read()
        self._total = self._total.to(like) + effective.to(like)
        return self._next(loss)

    def _next(self, loss: float) -> float:
        self._mean = (self._mean * self._steps + loss) / (self._steps + 1)
        self._steps += 1
        return self._mean

    @property
    def total(self) -> Tensor:
        """The sum of the effective sample sizes."""
        self.read()
        return self._total

    @total.setter
    def total(self, value: Tensor) -> None:
        self.read()
        self._total = value

    def read(self) -> None:
        """Find what is waited for."""
        waiting, self._waiting = self._waiting, []
        for _, same in itertools.groupby(waiting, key=lambda step: step.kind):
            steps = list(same)
            if len(steps) == 1:
                self._one(steps[0])
            else:
                self._several(steps)

    def _one(self, step: _Waiting) -> None:
        loss = mean_counted(step.losses, step.left_out)
        step.mean.found(self._next(float(loss.nan_to_num())))
        count = not_left_out(step.left_out, len(step.weights))
        effective = effective_fraction(step.weights, count)
        self._total = self._total.to(step.weights) + effective.to(step.weights)

    def _several(self, steps: list[_Waiting]) -> None:
        first = steps[0]
        losses = torch.stack([step.losses for step in steps])
        weights = torch.stack([step.weights for step in steps])
        count: int | Tensor = len(first.weights)
        if first.left_out is None:
            means = losses.mean(1)
        else:
            left_out = torch.stack([step.left_out for step in steps if step.left_out is not None])
            count = (~left_out).sum(1)
            means = torch.where(left_out, 0.0, losses).sum(1) / count
        for step, loss in zip(steps, means.nan_to_num().tolist(), strict=True):
            step.mean.found(self._next(loss))
        effective = weights.sum(1).square() / (count * weights.square().sum(1))
        effective = of_counted(effective, count)
        total = self._total.to(weights)
        for one in effective.to(weights).unbind():
            total = total + one
        self._total = total
