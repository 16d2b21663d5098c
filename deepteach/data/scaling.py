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
from deepteach.errors import DataError


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (1 where constant) per channel or column, in float64.

    Both of shape (c, 1, ...), which spreads over one sample. Raises DataError where they are
    beyond float32.
    """
    axes = (0, *range(2, x.ndim))
    shape = (-1, *(1,) * (x.ndim - 2))
    starts = range(0, len(x), ROWS_AT_ONCE)
    count = x.size // x.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):  # found in `_usable`
        sums = [x[i : i + ROWS_AT_ONCE].sum(axes, dtype=np.float64) for i in starts]
        mean = (np.sum(sums, axis=0) / count).reshape(shape)
        squares = [((x[i : i + ROWS_AT_ONCE] - mean) ** 2).sum(axes) for i in starts]
        std = np.sqrt(np.sum(squares, axis=0) / count).reshape(shape)
    return _usable(mean, std)


def _usable(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):
        single = np.stack([mean, std]).astype(np.float32)
    if not np.isfinite(single).all():
        raise DataError("x_train holds numbers too large for float32: rescale its columns")
    return mean, np.where(std <= 1e-12 * np.abs(mean), 1.0, std)


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

    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, as `moments` returns them."""
        shape = (-1, *(1,) * (self.axes - 1))
        std = np.sqrt(self.squares / self.count)
        return _usable(self.mean.reshape(shape), std.reshape(shape))


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


def compact(x: np.ndarray) -> np.ndarray:
    """As samples travel to the device: bytes, int32, int64 or float32; a copy where needed."""
    if x.dtype.kind == "f":
        return x.astype(np.float32, copy=False)
    if x.dtype.kind == "b":
        return x.astype(np.uint8)
    return x if x.dtype in (np.uint8, np.int32) else x.astype(np.int64, copy=False)


def whole(x: np.ndarray) -> Tensor:
    """A copy of whole numbers, as int32 where they are that, else as the int64 of indexes."""
    kept = x.astype(np.int32 if x.dtype == np.int32 else np.int64)
    return torch.from_numpy(np.ascontiguousarray(kept))
