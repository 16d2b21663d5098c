"""What the estimators refuse before scikit-learn sees it, or that it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepteach.data.tasks.base import Task
from deepteach.data.validation import (
    as_array,
    is_missing,
    label_array,
    label_in_message,
)
from deepteach.errors import DataError
from deepteach.names import brief


def refuse_missing_cells(x: Any, name: str) -> None:
    """Raises DataError for None, NaN or pandas' NA in X, where it holds Python's own objects.

    In numbers scikit-learn finds NaN by itself; at pandas' NA it ends in a bare TypeError.
    """
    kinds = [getattr(kind, "kind", "O") for kind in np.atleast_1d(_types(x))]
    cells = as_array(x, name) if "O" in kinds else np.empty(0)
    if cells.dtype != object or cells.ndim < 2 or cells.size == 0:
        return
    missing = _missing(cells)
    if missing.any():
        row, column = np.argwhere(missing)[0]
        raise DataError(
            f"{name} has no value in row {row} (feature {column}; {missing.any(1).sum()} of "
            f"{len(cells)} rows have none somewhere): fill such cells, or remove those samples"
        )


def _types(x: Any) -> Any:
    """The types of a frame's columns, or of an array; none of what is neither."""
    found = getattr(x, "dtypes", getattr(x, "dtype", ()))
    return np.fromiter(found, object) if np.iterable(found) else found


def refuse_missing(labels: NDArray, name: str, what: str = "label") -> None:
    """Raises DataError for samples `(n,)` or `(n, labels)` of which any is None, NaN or NA."""
    if labels.ndim == 0 or labels.size == 0 or labels.dtype.kind not in "Of":
        return
    missing: NDArray[np.bool_] = _missing(labels).max(1)
    if missing.any():
        raise DataError(
            f"{name} has no {what} at index {int(missing.argmax())} ({missing.sum()} of "
            f"{len(missing)} are missing): give them {what}s, or remove those samples"
        )


def _missing(cells: NDArray) -> NDArray[np.bool_]:
    """`(n, ...)` cells as `(n, columns)`: whether each is missing."""
    rows = cells.reshape(len(cells), -1)
    if rows.dtype.kind == "f":
        return np.isnan(rows)
    return np.array([list(map(is_missing, row)) for row in rows.tolist()], bool)


def refuse_mixed(labels: NDArray, name: str) -> None:
    """Raises DataError for labels of more than one kind."""
    if labels.dtype != object or labels.ndim == 0:
        return
    kinds = {str if isinstance(label, str) else float for label in labels.reshape(-1).tolist()}
    if len(kinds) > 1:
        raise DataError(f"{name} holds text and numbers: give all labels as one of the two")


def refuse_split(task: Task, codes: NDArray, held: NDArray, names: NDArray | None) -> None:
    """Raises DataError where the rows `held` of X, split off as trusted, can teach nothing.

    Args:
        task: what the labels are.
        codes: `(n, ...)` all of them.
        held: places of the trusted ones.
        names: of the classes, where there are any.
    """
    remedy = "give X_valid and y_valid, or more rows"
    if not len(held):
        alike = "of one class" if task.exclusive else "with the same labels"
        told = f" and no two {alike}, of which one could be trusted"
        if task.real_valued:
            told = ", too few to trust some of them"
        raise DataError(f"X has {len(codes)} rows{told}: {remedy}")
    if task.real_valued or (codes[held] != codes[held[0]]).any():
        return
    if names is not None and task.exclusive:
        lone, first, counts = np.unique(codes, return_index=True, return_counts=True)
        rare = int(counts.argmin())
        raise DataError(
            f"label {label_in_message(names[lone[rare]])} occurs once in y (index {first[rare]}), "
            "too rarely for a part of X to be trusted: correct it, or give X_valid and y_valid"
        )
    if (codes == codes[0]).all():
        raise DataError("all rows of y have the same labels: give some that differ")
    raise DataError(
        "the rows of X that would be trusted have the same labels, for others occur too rarely in "
        f"y: {remedy}"
    )


def targets_of(targets: Any, name: str) -> NDArray[np.float64]:
    """Targets as float64. Raises DataError where they are no numbers, or missing."""
    found = label_array(targets, name)
    refuse_missing(found, name, "target")
    try:
        if found.dtype.kind in "mM":
            raise TypeError(f"they are of dtype {found.dtype}")
        return found.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} is not made of numbers ({brief(error)}): give targets as numbers"
        ) from error
