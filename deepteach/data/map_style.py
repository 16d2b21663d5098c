"""A part of the data as it is handed to `train`: arrays, or a map-style Dataset of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deepteach.data.validation import as_array
from deepteach.errors import DataError


def part_of(source: Any, name: str) -> tuple[Any, Any, Any]:
    """(x, y, group) of one part; None for what there is not. `from_arrays` checks them.

    Args:
        source: `(x, y)` or `(x, y, group)` of arrays, tensors or data frames; a map-style
            Dataset whose items are `(x, y)` or `(x, y, group)` of one sample, its label and
            group numbers, text or tensors of one element; or None.
        name: "train_data", ..., for the messages.

    Raises:
        DataError: neither of them, or items that are no samples of one shape.
    """
    if source is None:
        return None, None, None
    if isinstance(source, tuple | list) and len(source) in (2, 3):
        return source[0], source[1], source[2] if len(source) == 3 else None
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise DataError(
            f"{name} is of type {type(source).__name__}: expected (x, y), (x, y, group), or a "
            "map-style Dataset, which has a length"
        )
    items = [source[i] for i in range(len(source))]
    if not items:
        raise DataError(f"{name} is empty: expected at least one sample")
    first = items[0]
    if not isinstance(first, tuple | list) or len(first) not in (2, 3):
        raise DataError(
            f"item 0 of {name} is of type {type(first).__name__}: expected (x, y) or (x, y, group)"
        )
    for i, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != len(first):
            raise DataError(
                f"item {i} of {name} is not made up of {len(first)} parts as item 0 is: give every "
                "sample as many"
            )
    columns = list(zip(*items, strict=True))
    y = np.empty(len(items), dtype=object)  # so that numbers beside text stay apart from it
    y[:] = _scalars(columns[1], name)
    group = np.array(_scalars(columns[2], name)) if len(columns) == 3 else None
    return _inputs(columns[0], name), y, group


def _inputs(samples: Sequence[Any], name: str) -> np.ndarray:
    rows = [as_array(sample) for sample in samples]
    for i, row in enumerate(rows):
        if row.shape != rows[0].shape:
            raise DataError(
                f"item {i} of {name} has shape {row.shape}, item 0 {rows[0].shape}: expected "
                "samples of one shape"
            )
    return np.stack(rows)


def _scalars(values: Sequence[Any], name: str) -> list[Any]:
    """Labels or groups as Python's own numbers and text."""
    found = []
    for i, value in enumerate(map(as_array, values)):
        if value.size != 1:
            raise DataError(
                f"item {i} of {name} has a label or group of shape {value.shape} (one-hot?): "
                "expected a single number or text, e.g. y.argmax()"
            )
        found.append(value.item())
    return found
