"""Whether the parts of a data set have their numbers in the same range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepteach.data.lazy import LazyRows
from deepteach.data.validation import ROWS_AT_ONCE
from deepteach.errors import DataError

_WHITE = 10.0
"""A greatest number of a pixel from which on 1 is not white."""


@dataclass(frozen=True)
class Range:
    """What is known of the numbers of a part.

    Args:
        least: of all.
        greatest: of all; of what is not in memory one that it exceeds.
        fractions: whether any is no whole number.
        images: whether a sample has three axes.
        sure: whether all numbers were looked at.
    """

    least: float
    greatest: float
    fractions: bool
    images: bool
    sure: bool = True

    @classmethod
    def of(cls, x: Any) -> Range:
        """That of samples `(n, ...)`, an array or samples that are read on access."""
        images = len(x.shape) == 4
        if isinstance(x, LazyRows):
            mean = x.moments.mean
            fractions = x.raw_dtype.kind == "f"
            return cls(
                0.0 if not fractions else -np.inf, float(mean.max()), fractions, images, False
            )
        parts = (x[i : i + ROWS_AT_ONCE] for i in range(0, len(x), ROWS_AT_ONCE))
        fractions = x.dtype.kind == "f" and any((part != np.trunc(part)).any() for part in parts)
        return cls(float(x.min()), float(x.max()), fractions, images)

    @property
    def bytes(self) -> bool:
        """Whether they may be pixels of 0..255."""
        return self.least >= 0 and self.greatest > _WHITE

    def is_other(self, large: Range) -> bool:
        """Whether these are pixels of 0..1, or centred ones, and those of `large` bytes."""
        if not (self.sure and self.fractions and large.bytes):
            return False
        if self.least >= 0:
            return 0 < self.greatest <= 1 and (large.images or not large.fractions)
        return self.images and not large.fractions and self.greatest < _WHITE

    def __str__(self) -> str:
        return f"{self.least:.4g}..{self.greatest:.4g}"


def refuse_two_ranges(parts: Mapping[str, Range]) -> None:
    """Raises DataError where one part has pixels of 0..1 and another of 0..255, or the like.

    All parts are scaled by the moments of the training samples, so that the other part would be
    nearly constant.
    """
    for small, own in parts.items():
        for large, other in parts.items():
            if own.is_other(other):
                raise DataError(
                    f"{small} has pixels of {own}, and {large} of {other}: give both in one range"
                )


def one_is_standardised(x: np.ndarray, other: np.ndarray) -> bool:
    """Whether the columns of one table have mean 0 and deviation 1, and the other's are far off."""
    if x.ndim != 2 or other.ndim != 2 or len(other) < 2 or x.dtype.kind != "f":
        return False
    moves = x.std(0) > 0
    exact = (np.abs(x.mean(0)) < 1e-4) & (np.abs(x.std(0) - 1) < 1e-4)
    if not moves.any() or not exact[moves].all():
        return False
    mean, deviation = other[:, moves].mean(0), other[:, moves].std(0)
    return bool(((np.abs(mean) > 1) | (deviation > 3)).mean() >= 0.5)
