"""What arrays must satisfy before they become a data set; each refusal is one line.

Symbols: n samples, c channels, h height, w width, d columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepteach.errors import DataError

CHUNK = 1024  # rows held in float64 at a time
ENCODE = "encode labels as 0..C-1, e.g. with sklearn.preprocessing.LabelEncoder"


def as_array(value: Any) -> np.ndarray:
    """A NumPy array of a tensor, an array, a data frame or a list."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def features(value: Any, name: str) -> np.ndarray:
    """Finite numbers as (n, d) or (n, c, h, w); not copied, not yet converted."""
    try:
        x = as_array(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name} is not an array: {error}") from error
    if x.dtype.kind not in "buif":
        raise DataError(
            f"{name} has dtype {x.dtype}: expected numbers; encode other columns as numbers"
        )
    if x.ndim not in (2, 3, 4):
        raise DataError(
            f"{name} has shape {x.shape}: expected a table (n, d) or images (n, h, w), "
            "(n, h, w, c) or (n, c, h, w)"
        )
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and _channels_last(x):
        x = np.moveaxis(x, 3, 1)
    if 0 in x.shape:
        raise DataError(f"{name} is empty (shape {x.shape}): expected at least one sample")
    refuse_non_finite(x, name)
    return x


def _channels_last(x: np.ndarray) -> bool:
    """Bytes come as pictures, (n, h, w, c); floats more often as PyTorch's (n, c, h, w)."""
    first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
    return last and (x.dtype == np.uint8 or not first)


def labels_of(value: Any, name: str) -> np.ndarray:
    """Integers of shape (n,) as int64; their range is not checked here."""
    y = as_array(value)
    if y.ndim == 2 and y.shape[1] > 1:
        raise DataError(
            f"{name} has shape {y.shape} (one-hot?): expected integer labels of shape "
            f"(n,), e.g. {name}.argmax(1)"
        )
    if y.ndim != 1:
        raise DataError(f"{name} has shape {y.shape}: expected (n,), e.g. {name}.reshape(-1)")
    if len(y) == 0:
        raise DataError(f"{name} is empty: expected at least one sample")
    if y.dtype.kind == "f":
        wrong = np.flatnonzero(~(np.isfinite(y) & (y == np.trunc(y))))
        index = int(wrong[0]) if len(wrong) else 0
        raise DataError(
            f"{name} has dtype {y.dtype} (index {index}: {y[index]}): expected integer "
            "labels 0..C-1"
        )
    if y.dtype.kind not in "bui":
        raise DataError(f"{name} has dtype {y.dtype} (index 0: {y[0]!r}): {ENCODE}")
    if y.dtype == np.uint64 and (y > np.iinfo(np.int64).max).any():
        index = int(np.argmax(y))
        raise DataError(f"label {y[index]} at index {index} of {name}: {ENCODE}")
    return y.astype(np.int64)


def groups_of(value: Any, count: int) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The source of each of `count` training samples as int64 codes, and their names by code.

    Sources are numbers or text, coded in sorted order. Raises DataError.
    """
    if value is None:
        return None, ()
    groups = as_array(value)
    if groups.ndim == 2 and groups.shape[1] == 1:
        groups = groups[:, 0]
    if groups.shape != (count,):
        raise DataError(
            f"group_train has shape {groups.shape}: expected one source for each of the "
            f"{count} rows of x_train"
        )
    if groups.dtype.kind not in "buif":
        groups = np.array([str(item) for item in groups])
    names, codes = np.unique(groups, return_inverse=True)
    return codes.astype(np.int64), tuple(map(str, names.tolist()))


def rows_of(value: Any, name: str, count: int) -> np.ndarray:
    """The user's own row number of each of `count` samples; their place unless given."""
    if value is None:
        return np.arange(count)
    rows = as_array(value)
    if rows.shape != (count,) or rows.dtype.kind not in "ui":
        raise DataError(
            f"{name} has shape {rows.shape} and dtype {rows.dtype}: expected a whole number "
            f"for each of {count} samples"
        )
    if len(np.unique(rows)) != count:
        raise DataError(f"{name} has a number twice: expected each sample's own row")
    return rows.astype(np.int64)


def refuse_lengths(xs: Mapping[str, Sized], ys: Mapping[str, Sized]) -> None:
    """Every y_PART, and y_clean, has as many labels as x_PART or x_train has rows."""
    for y, labels in ys.items():
        x = "x_train" if y == "y_clean" else f"x{y[1:]}"
        rows = len(xs[x]) if x in xs else 0
        if rows != len(labels):
            raise DataError(
                f"{x} has {rows} rows but {y} has {len(labels)}: expected one label per row"
            )


def refuse_one_class(labels: Mapping[str, np.ndarray]) -> None:
    """Neither the training nor the trusted labels may all be the same."""
    for name in ("y_valid", "y_train"):
        if name in labels and len(only := np.unique(labels[name])) == 1:
            raise DataError(
                f"{name} holds class {only[0]} only: expected samples of at least 2 classes"
            )


def refuse_out_of_range(y: np.ndarray, name: str, classes: int) -> None:
    """Raises DataError for a label that is not in 0..classes-1."""
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if len(wrong):
        raise DataError(
            f"label {y[wrong[0]]} at index {wrong[0]} of {name} is outside "
            f"0..{classes - 1} ({classes} classes): correct it, or {ENCODE}"
        )


def refuse_non_finite(x: np.ndarray, name: str) -> None:
    """Raises DataError for a NaN or an infinity, with its row and column."""
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK].reshape(len(x[start : start + CHUNK]), -1)
        rows = np.flatnonzero(~np.isfinite(part).all(axis=1))
        if len(rows):
            row, column = rows[0], int(np.argmin(np.isfinite(part[rows[0]])))
            raise DataError(
                f"{name} holds {part[row, column]} in row {start + row} (feature "
                f"{column}): expected finite numbers; fill or remove such rows"
            )


def overlap_of(x_train: np.ndarray, x_valid: np.ndarray) -> str | None:
    """How many validation rows are also training rows, by a hash of their bytes.

    Some data repeats itself (blank images, coarse tables). More than 1 % of the validation
    rows, and more than twice the share of training rows that have a twin in the training
    set, is not chance: DataError.
    """
    train = [_digest(row) for row in x_train]
    index = {key: i for i, key in reversed(list(enumerate(train)))}  # the first of equals
    pairs = [(index[k], i) for i, k in enumerate(map(_digest, x_valid)) if k in index]
    if not pairs:
        return None
    _, counts = np.unique(np.array(train), return_counts=True)
    natural = counts[counts > 1].sum() / len(train)
    text = (
        f"{len(pairs)} of {len(x_valid)} validation rows are also training rows (first: "
        f"x_valid[{pairs[0][1]}] is x_train[{pairs[0][0]}])"
    )
    if len(pairs) / len(x_valid) > max(0.01, 2 * natural):
        raise DataError(f"{text}: remove them from one of the two")
    return f"{text}: the trusted set should be disjoint"


def _digest(row: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16).digest()
