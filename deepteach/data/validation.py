"""What arrays must satisfy before they become a data set; each refusal is one line.

Symbols: n samples, c channels, h height, w width, d columns.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepteach.data.images.pictures import is_picture, unpacked
from deepteach.data.tables.frames import numbers_of
from deepteach.errors import DataError
from deepteach.names import brief

ROWS_AT_ONCE = 1024  # rows held in float64 at a time
_LARGEST = float(np.finfo(np.float32).max)
_SHOWN = 60
"""Characters of a name in a message."""
MANY_SOURCES = 20
"""Sources that may be more than half as many as samples."""
ENCODE = (
    "encode labels as 0..C-1 (sklearn.preprocessing.LabelEncoder), or write them as text, 'class 4'"
)


def as_array(value: Any, name: str = "an array") -> np.ndarray:
    """A NumPy array of a tensor, an array, a data frame, an image, or a list of such.

    Raises DataError where cells of it, which `name` calls in the message, are masked.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(
            f"{np.ma.count_masked(value)} cells of {name} are masked: fill them, e.g. by "
            "array.filled(0), or remove their rows"
        )
    if isinstance(value, list | tuple) and value and is_picture(value[0]):
        value = [as_array(item) for item in value]
    elif is_picture(value):
        value = unpacked(value)
    return np.asarray(value)


def label_array(value: Any, name: str) -> np.ndarray:
    """Labels of any kind as an array.

    Raises DataError: samples have different numbers of them, or some are masked.
    """
    try:
        return as_array(value, name)
    except DataError:  # it is a ValueError, too, and has a remedy of its own
        raise
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{name} is not an array ({brief(error)}): give one label a sample, or for several "
            "rows of 0 and 1, or text with | between them"
        ) from error


Numbers = Mapping[str, np.ndarray]
"""The user's own row numbers, by part (train, valid), where they are not simply the place."""


def place(numbers: Numbers | None, name: str, index: int) -> str:
    """Where a sample of x_PART or y_PART is, in the user's own numbering."""
    part = "train" if name == "y_clean" else name[2:]
    if numbers is None or part not in numbers or index >= len(numbers[part]):
        return f"index {index} of {name}"
    return f"row {numbers[part][index]}"


def is_number(text: str) -> bool:
    """Whether Python reads it as a float, and not by leaving out an underscore: 1_0 is a name."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


_CODE = re.compile(r"[+-]?(0\d+|\d{16,})")  # floats have 15 digits exactly


def plain_number(text: str) -> bool:
    """Whether a label is a number and no code: 01, 007 and numbers of twenty digits are codes."""
    return is_number(text) and text.isascii() and not _CODE.fullmatch(text)


def is_missing(item: Any) -> bool:
    """None, NaN, or pandas' NA, which cannot be compared."""
    try:
        return item is None or bool(item != item)
    except (TypeError, ValueError):
        return True


def as_text(label: Any) -> str:
    """A label as weights.csv shows it: booleans are 0 and 1, as they are in the training."""
    label = label.item() if isinstance(label, np.generic) else label
    return str(int(label) if isinstance(label, bool) else label)


def decoded(item: Any) -> Any:
    """Text where it is bytes, as it is else."""
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else item


def in_message(item: Any) -> str:
    """A name of the user's, fit for a message: one short line, that a terminal only prints."""
    line = " ".join(str(item).split())[:_SHOWN]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def quoted(label: Any) -> str:
    """A label between quotes, with all its spaces, line breaks and the like, however they print."""
    text = str(label)
    return repr(text if len(text) <= _SHOWN else f"{text[:40]}...{text[-17:]}")


def label_in_message(label: Any) -> str:
    """A label as it is, and quoted where that would not show what it is."""
    return str(label) if str(label) == in_message(label) else quoted(label)


def as_whole(value: Any) -> Any:
    """Bytes that are no pixels as the int64 of indexes; what holds others as it is."""
    if isinstance(value, Tensor):
        return value.long() if value.dtype == torch.uint8 else value
    x = as_array(value)
    if x.dtype != np.uint8:
        return value
    return value.astype(np.int64) if hasattr(value, "iloc") else x.astype(np.int64)


def features(value: Any, name: str, *, as_given: bool = False) -> np.ndarray:
    """Numbers as (n, d), images (n, c, h, w) or more axes; not copied or converted.

    `as_given`: only bytes, which are pixels, are taken for images and put in that order.
    """
    try:
        x = as_array(value, name)
    except DataError:  # likewise
        raise
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{name} is not an array ({brief(error)}): give every sample the same shape"
        ) from error
    if 0 in x.shape:
        raise DataError(f"{name} is empty (shape {x.shape}): expected at least one sample")
    if x.dtype.kind == "O":
        x = numbers_of(value, x, name)
    if x.dtype.kind not in "buif":
        raise DataError(
            f"{name} has dtype {x.dtype}: expected numbers; encode other columns as numbers"
        )
    if x.ndim < 2:
        raise DataError(
            f"{name} has shape {x.shape}: expected a table (n, d), images (n, h, w), "
            "(n, h, w, c) or (n, c, h, w), or more axes"
        )
    if x.dtype == np.uint8 or not as_given:
        if x.ndim == 3:
            x = x[:, None]
        elif x.ndim == 4 and _channels_last(x):
            x = np.moveaxis(x, 3, 1)
    return x


def _channels_last(x: np.ndarray) -> bool:
    """Bytes come as pictures, (n, h, w, c); floats more often as PyTorch's (n, c, h, w).

    Four channels, of which one is transparency, only where no other axis may be that of channels,
    or of maps of 4 x 4.
    """
    if x.shape[3] == 4:
        return x.shape[1] not in (1, 3, 4) and x.shape[2] != 4
    first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
    return last and (x.dtype == np.uint8 or not first)


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
    items = [decoded(item) for item in groups.tolist()]
    missing = [is_missing(item) or item == "" for item in items]
    if any(missing):
        raise DataError(
            f"group_train has no source at index {missing.index(True)} ({sum(missing)} of {count} "
            "are missing): name every source"
        )
    if groups.dtype.kind not in "buif":
        texts, others = (
            {str(i) for i in items if isinstance(i, str) is own} for own in (True, False)
        )
        if both := sorted(texts & others):
            raise DataError(
                f"group_train holds {in_message(both[0])} as text and as a number: write it one way"
            )
        groups = np.array([str(item) for item in items])
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) > max(MANY_SOURCES, count // 2):
        warnings.warn(
            f"group_train names {len(names)} sources of {count} samples: leave it out if it only "
            "numbers them, for a source is known by its samples",
            UserWarning,
            stacklevel=3,
        )
    return codes.astype(np.int64), tuple(map(str, names.tolist()))


def row_numbers(value: Any, name: str, count: int) -> np.ndarray:
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
                f"{name} holds class {label_in_message(only[0])} only: expected samples of at "
                "least 2 classes"
            )


def refuse_out_of_range(
    y: np.ndarray, name: str, classes: int, first: int = 0, numbers: Numbers | None = None
) -> None:
    """Raises DataError for a code not in 0..C-1; the user calls the lowest class `first`."""
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if len(wrong):
        raise DataError(
            f"label {y[wrong[0]] + first} at {place(numbers, name, int(wrong[0]))} is outside "
            f"{first}..{classes - 1 + first} ({classes} classes): correct it, or {ENCODE}"
            f"{'; of quantities say task=regression' if classes > 20 else ''}"
        )


def first_non_finite(
    x: np.ndarray, *, single: bool = False
) -> tuple[int, tuple[int, int, float] | None]:
    """How many rows of `(n, ...)` are not finite; the first of them, where in it, what is there.

    `single`: nor what is beyond float32.
    """
    found, count = None, 0
    wide = single and x.dtype.kind == "f" and x.dtype.itemsize > np.dtype(np.float32).itemsize
    for start in range(0, len(x), ROWS_AT_ONCE):
        part = x[start : start + ROWS_AT_ONCE].reshape(len(x[start : start + ROWS_AT_ONCE]), -1)
        fine = np.abs(part) <= _LARGEST if wide else np.isfinite(part)
        rows = np.flatnonzero(~fine.all(axis=1))
        count += len(rows)
        if len(rows) and found is None:
            column = int(np.argmin(fine[rows[0]]))
            found = start + int(rows[0]), column, part[rows[0], column]
    return count, found


def refuse_non_finite(x: np.ndarray, name: str, numbers: Numbers | None = None) -> None:
    """Raises DataError for a NaN or an infinity, with its row and column, and how many rows."""
    _refuse(first_non_finite(x), name, numbers)


def refuse_beyond_single(x: np.ndarray, name: str, numbers: Numbers | None = None) -> None:
    """The same for what float32 cannot hold."""
    _refuse(first_non_finite(x, single=True), name, numbers)


def _refuse(
    looked: tuple[int, tuple[int, int, float] | None], name: str, numbers: Numbers | None
) -> None:
    count, found = looked
    if found is not None:
        index, column, value = found
        row = _own_row(numbers, name, index)
        raise DataError(non_finite_message(name, row, column, value, count))


def refuse_overflow(
    scaled: Tensor, x: np.ndarray, name: str, numbers: Numbers | None = None
) -> None:
    """Raises DataError where `scaled` holds what was finite in `x`, and is beyond float32 now."""
    count, found = first_non_finite(scaled.numpy())
    if found is not None:
        index, column, _ = found
        value = x[index].reshape(-1)[column]
        shown = value if np.isfinite(value) else "a number"  # scaled in its place
        raise DataError(
            f"{name} holds {shown} in row {_own_row(numbers, name, index)} (feature {column})"
            f"{_more(count)}: too large for float32 beside the numbers of x_train; correct or "
            "remove such rows"
        )


def _own_row(numbers: Numbers | None, name: str, index: int) -> int:
    part = name[2:]
    return index if numbers is None or part not in numbers else int(numbers[part][index])


def non_finite_message(name: str, row: int, column: int, value: float, count: int) -> str:
    """What to say of `count` rows that are not finite, or too large, `row` the first."""
    where = f"{name} holds {value} in row {row} (feature {column}){_more(count)}"
    if np.isfinite(value):
        return f"{where}: too large for float32; rescale that feature, or remove such rows"
    return f"{where}: expected finite numbers; fill or remove such rows"


def _more(count: int) -> str:
    return f", and {count - 1} more rows like it" if count > 1 else ""
