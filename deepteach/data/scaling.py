"""Centre and scale samples by the moments of the training samples.

Symbols: n samples, c channels or columns, the second axis of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepteach.data.validation import ROWS_AT_ONCE

LOSING = 1e6
"""Deviations of a column that its mean may be away from 0 before float32 loses the digits.

Numbers are then rounded by some hundredths of a deviation.
"""


def spread(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel or column, in float64.

    Both of shape (c, 1, ...), which spreads over one sample; not finite where they overflow.
    """
    axes = (0, *range(2, x.ndim))
    shape = (-1, *(1,) * (x.ndim - 2))
    starts = range(0, len(x), ROWS_AT_ONCE)
    count = x.size // x.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):  # found by the caller
        sums = [x[i : i + ROWS_AT_ONCE].sum(axes, dtype=np.float64) for i in starts]
        mean = (np.sum(sums, axis=0) / count).reshape(shape)
        squares = [((x[i : i + ROWS_AT_ONCE] - mean) ** 2).sum(axes) for i in starts]
        std = np.sqrt(np.sum(squares, axis=0) / count).reshape(shape)
    return mean, std


def divisor(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """By what samples are divided: their deviation, and 1 where they are constant."""
    return np.where(_constant(mean, std), 1.0, std)


def _constant(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return std <= 1e-12 * np.abs(mean)


def lost_digits(mean: np.ndarray, std: np.ndarray) -> str | None:
    """What to tell of columns that float32 blurs where nothing is taken out of them first."""
    blurred = ~_constant(mean, std) & (np.abs(mean) > LOSING * std)
    if not blurred.any():
        return None
    first = int(np.argmax(blurred.reshape(-1)))
    return (
        f"feature {first} of x_train varies by {std.flat[first]:.3g} about {mean.flat[first]:.6g}, "
        "of which float32 loses the digits, and a module of your own gets floats as they are: "
        "subtract the mean in float64"
    )


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations per channel or column, `(c,)` in float64."""

    count: int
    mean: np.ndarray
    squares: np.ndarray
    axes: int  # of a sample

    @classmethod
    def of(cls, x: np.ndarray) -> Moments:
        """Those of a batch `(b, c, ...)`."""
        axes = (0, *range(2, x.ndim))
        count = x.size // x.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            mean = x.sum(axes, dtype=np.float64) / count
            deviations = x - mean.reshape(-1, *(1,) * (x.ndim - 2))
            return cls(count, mean, (deviations**2).sum(axes), x.ndim - 1)

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Those of all batches together (Chan, Golub & LeVeque, COMPSTAT 1982)."""
        counts = np.array([part.count for part in parts], np.float64)[:, None]
        means = np.stack([part.mean for part in parts])
        with np.errstate(over="ignore", invalid="ignore"):
            mean = (counts * means).sum(0) / counts.sum()
            between = (counts * (means - mean) ** 2).sum(0)
            squares = np.stack([part.squares for part in parts]).sum(0) + between
        return cls(int(counts.sum()), mean, squares, parts[0].axes)

    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, as `spread` returns them of an array."""
        shape = (-1, *(1,) * (self.axes - 1))
        std = np.sqrt(self.squares / self.count)
        return self.mean.reshape(shape), std.reshape(shape)


def normalised(
    x: np.ndarray, mean: np.ndarray, scale: np.ndarray, *, overwrite: bool = False
) -> Tensor:
    """(x - mean) / scale as float32; in the place of x where it may be, and is float32."""
    own = overwrite and x.dtype == np.float32 and x.flags.carray
    out = x if own else np.empty(x.shape, np.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused by the caller
        for i in range(0, len(x), ROWS_AT_ONCE):
            out[i : i + ROWS_AT_ONCE] = (x[i : i + ROWS_AT_ONCE] - mean) / scale
    return torch.from_numpy(out)


def compact(x: np.ndarray, *, wide: bool = False) -> np.ndarray:
    """As samples travel to the device: bytes, int32, int64 or float32; a copy where needed.

    `wide`: more than single precision stays double, for samples that will be scaled: large numbers
    that differ by little would be one number in float32.
    """
    if x.dtype.kind == "f":
        double = wide and x.dtype.itemsize > np.dtype(np.float32).itemsize
        with np.errstate(over="ignore"):  # refused by the caller
            return x.astype(np.float64 if double else np.float32, copy=False)
    if x.dtype.kind == "b":
        return x.astype(np.uint8)
    return x if x.dtype in (np.uint8, np.int32) else x.astype(np.int64, copy=False)


def whole(x: np.ndarray) -> Tensor:
    """A copy of whole numbers, as int32 where they are that, else as the int64 of indexes."""
    kept = x.astype(np.int32 if x.dtype == np.int32 else np.int64)
    return torch.from_numpy(np.ascontiguousarray(kept))
