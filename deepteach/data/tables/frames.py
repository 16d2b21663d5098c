"""What is particular to data frames and sparse matrices, without importing their libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepteach.errors import DataError

_NUMBERS = (bool, int, float, np.number, np.bool_)


def numbers_of(value: Any, x: np.ndarray, name: str) -> np.ndarray:
    """Floats out of `x`, the array of Python objects that a frame of several types gives.

    Raises DataError where a cell is no number, naming the columns.
    """
    if hasattr(value, "toarray"):
        raise DataError(f"{name} is a sparse matrix: expected an array, e.g. {name}.toarray()")
    cells = x.reshape(len(x), -1) if x.ndim else x.reshape(1, 1)
    numeric = np.array([[isinstance(c, _NUMBERS) for c in row] for row in cells.tolist()])
    if numeric.all():
        return x.astype(np.float64)
    row, column = np.argwhere(~numeric)[0]
    example = " ".join(repr(cells[row, column]).split())[:40]
    names = getattr(value, "columns", None)
    odd = np.flatnonzero(~numeric.all(axis=0))
    where = ""
    if names is not None and len(names) == cells.shape[1]:
        where = f" in columns {', '.join(str(names[i]) for i in odd[:5])}"
    raise DataError(
        f"{name} has dtype object (row {row}: {example}){where}: expected numbers; encode text as "
        "numbers, and fill or remove what is missing"
    )


def index_notes(xs: Mapping[str, Any], ys: Mapping[str, Any]) -> list[str]:
    """What to tell about the indexes of data frames: samples go by their place.

    Raises DataError where labels, or sources, hold the index of their samples in another order.
    """
    for name, y in ys.items():
        x_name = "x_train" if name in ("y_clean", "group_train") else f"x{name[1:]}"
        if index_elsewhere(xs.get(x_name), y):
            raise DataError(
                f"{x_name} and {name} have the same index in another order: align them, e.g. "
                f"{name}.loc[{x_name}.index]"
            )
    index = _index(xs["x_train"])
    if index is None or index.tolist() == list(range(len(index))):
        return []
    return ["rows of the data frame are numbered by their place, from 0, not by its index"]


def index_elsewhere(x: Any, y: Any) -> bool:
    """Whether two frames or series have the same index in another order."""
    one, other = _index(x), _index(y)
    if one is None or other is None or len(one) != len(other) or (one == other).all():
        return False
    return sorted(map(str, one.tolist())) == sorted(map(str, other.tolist()))


def stored_index(names: Sequence[str], described: Mapping[str, Any] | None = None) -> list[str]:
    """Which columns hold the index of a data frame, as pandas stores it beside the others.

    Args:
        names: of all columns.
        described: what pandas says of them in the file; an index with a name is told by it alone.
    """
    told = (described or {}).get("index_columns", ())  # a mapping where it is a range
    return [name for name in names if name.startswith("__index_level_") or name in told]


def categorical(described: Mapping[str, Any] | None) -> list[str]:
    """Which columns of a file pandas says that it wrote categories to."""
    columns = (described or {}).get("columns", ())
    return [one["name"] for one in columns if one.get("pandas_type") == "categorical"]


def refuse_columns(parts: Mapping[str, Any], first: str) -> None:
    """Raises DataError where a frame's columns have other names, or another order, than `first`'s.

    Columns are taken by their place.
    """
    own = columns_of(parts[first])
    for name, part in parts.items():
        if name != first:
            refuse_other_columns(own, first, part, name)


def refuse_other_columns(own: list[Any] | None, first: str, part: Any, name: str) -> None:
    """The same of one frame, `own` being the columns of `first`."""
    other = columns_of(part)
    if own is None or other is None or own == other:
        return
    if sorted(map(str, own)) == sorted(map(str, other)):
        raise DataError(
            f"{name} has the columns of {first} in another order: give {name}[{first}.columns]"
        )
    if _counted(own) or _counted(other):
        return
    odd = [str(column) for column in other if column not in own] or ["fewer"]
    raise DataError(
        f"{name} has other columns than {first} ({', '.join(odd[:3])}): give both the same"
    )


def columns_of(value: Any) -> list[Any] | None:
    """The names of a frame's columns; None of what has none."""
    columns = getattr(value, "columns", None)
    return None if columns is None or callable(columns) else list(columns)


def _counted(columns: list[Any]) -> bool:
    """Whether columns have no names, and only numbers."""
    return all(isinstance(column, int) for column in columns)


def _index(value: Any) -> np.ndarray | None:
    """The index of a data frame or series; lists and strings have a method of that name."""
    index = getattr(value, "index", None)
    if index is None or callable(index):
        return None
    found = np.asarray(index)
    return found if found.ndim == 1 else None
