"""Meta-gradients by training again: the window is run with other teachers, in plain torch.

Nothing here comes from deepteach but the teachers' forms. A derivative is a central
difference, extrapolated (Richardson), at steps that halve until two extrapolations agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Ends = Callable[[Tensor], Tensor]
"""Moves of the teacher, `(parameters,)` -> the validation loss after the window."""

HALVINGS, FIRST = 12, 1e-3


@dataclass(frozen=True)
class Difference:
    """A gradient by differences, and how far apart its two best extrapolations are."""

    gradient: Tensor
    doubt: float


def differences(ends: Ends, axes: Tensor, wanted: float = 1e-8) -> Difference:
    """The slopes at 0 along each axis, by central differences."""
    slopes, doubts = [], []
    for axis in axes:
        slope, doubt = along(ends, axis, wanted)
        slopes.append(slope)
        doubts.append(doubt)
    return Difference(torch.tensor(slopes, dtype=torch.float64), float(torch.tensor(doubts).norm()))


def along(ends: Ends, axis: Tensor, wanted: float) -> tuple[float, float]:
    """The slope along an axis, and the gap between the two extrapolations that agree best.

    A kink between two of the points spoils the larger steps, rounding the smaller ones; both
    show as a gap.
    """
    plain: list[float] = []
    better: list[float] = []
    best = (float("nan"), float("inf"))
    h = FIRST
    for _ in range(HALVINGS):
        plain.append(float((ends(h * axis) - ends(-h * axis)) / (2 * h)))
        if len(plain) > 1:
            better.append((4 * plain[-1] - plain[-2]) / 3)
        if len(better) > 1:
            # The next extrapolation (Romberg) of the two is the answer.
            answer = (16 * better[-1] - better[-2]) / 15
            gap = abs(better[-1] - better[-2]) / 15
            if gap < best[1]:
                best = (answer, gap)
            if gap <= wanted * abs(answer):
                break
        h /= 2
    return best
