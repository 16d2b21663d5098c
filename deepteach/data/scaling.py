"""Centre and scale samples by the moments of the training samples.

Symbols: n samples, c channels or columns, the second axis of x.
"""

from __future__ import annotations

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
    with np.errstate(over="ignore", invalid="ignore"):  # found below
        sums = [x[i : i + ROWS_AT_ONCE].sum(axes, dtype=np.float64) for i in starts]
        mean = (np.sum(sums, axis=0) / count).reshape(shape)
        squares = [((x[i : i + ROWS_AT_ONCE] - mean) ** 2).sum(axes) for i in starts]
        std = np.sqrt(np.sum(squares, axis=0) / count).reshape(shape)
        single = np.stack([mean, std]).astype(np.float32)
    if not np.isfinite(single).all():
        raise DataError("x_train holds numbers too large for float32: rescale its columns")
    return mean, np.where(std <= 1e-12 * np.abs(mean), 1.0, std)


def normalised(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Tensor:
    """(x - mean) / scale as float32."""
    out = np.empty(x.shape, np.float32)
    for i in range(0, len(x), ROWS_AT_ONCE):
        out[i : i + ROWS_AT_ONCE] = (x[i : i + ROWS_AT_ONCE] - mean) / scale
    return torch.from_numpy(out)


def whole(x: np.ndarray) -> Tensor:
    """A copy of whole numbers, as int32 where they are that, else as the int64 of indexes."""
    kept = x.astype(np.int32 if x.dtype == np.int32 else np.int64)
    return torch.from_numpy(np.ascontiguousarray(kept))
