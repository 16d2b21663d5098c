"""The weights of the samples after each epoch: a mean for each of them, and the course of some."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SHOWN = 10_000
"""Samples whose weights are kept for every epoch; of more, as many are taken evenly spaced."""

LARGEST_WEIGHT = torch.finfo(torch.float16).max
"""Weights are unbounded where a teacher is sure of few samples; a course holds none above it."""


class WeightHistory:
    """Numbers of fixed size a sample, however long the run.

    Of up to `SHOWN` samples all weights are kept, `(epochs, n)` in half precision. Of more, the
    sum over the epochs is, and the course of `SHOWN` of them.
    """

    def __init__(self) -> None:
        self.course: list[Tensor] = []
        """`(shown,)` weights after each epoch."""
        self._total: Tensor | None = None

    def __len__(self) -> int:
        return len(self.course)

    @staticmethod
    def places(count: int) -> Tensor:
        """Which of `count` samples have a course, in order."""
        return torch.linspace(0, count - 1, min(count, SHOWN), dtype=torch.float64).round().long()

    def append(self, weights: Tensor) -> None:
        """`(n,)` weights after one more epoch."""
        weights = weights.clamp(max=LARGEST_WEIGHT).half()
        if len(weights) > SHOWN:
            total = torch.zeros(len(weights)) if self._total is None else self._total
            self._total = total + weights.float()
            weights = weights[self.places(len(weights))]
        self.course.append(weights)

    def mean(self) -> Tensor:
        """`(n,)` over the epochs."""
        if self._total is not None:
            return self._total / len(self.course)
        return torch.stack(self.course).float().mean(0)

    def state_dict(self) -> dict[str, Any]:
        """What a bit-exact resume needs."""
        course = torch.stack(self.course) if self.course else None
        return {"history": course, "history_total": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; an earlier version kept all courses."""
        self.course, self._total = [], state.get("history_total")
        add = self.append if self._total is None else self.course.append
        for weights in () if state["history"] is None else state["history"]:
            add(weights)
