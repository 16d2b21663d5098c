"""In which format the items of a data set of Hugging Face are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def dtype_of(dataset: Any, column: str) -> np.dtype[Any] | None:
    """The type of the numbers in a column, or in its arrays, as the file has them.

    None where a transform of the user's, or what they say to a format, makes something else of it.
    """
    if dataset.format["type"] == "custom" or dataset.format["format_kwargs"]:
        return None
    kind = dataset.features.get(column)
    while getattr(kind, "feature", None) is not None:
        kind = kind.feature
    try:
        found = np.dtype(getattr(kind, "dtype", ""))
    except TypeError:
        return None
    return found if found.kind in "buif" else None


def exact(dataset: Any, inputs: Sequence[str], dtype: np.dtype[Any] | None) -> Any:
    """The same items as NumPy's, with the digits that their numbers have in the file.

    By themselves the library's formats make float32 of arrays of float64, and that of torch of
    single numbers, too.

    Args:
        dataset: a data set without images.
        inputs: its columns that are read as numbers.
        dtype: of the first of them, as `dtype_of` says.
    """
    if dtype is None:
        return dataset.with_format("numpy") if dataset.format["type"] is None else dataset
    plain = dataset.with_format("numpy")
    if dtype != np.float64 or not np.ndim(plain[0][inputs[0]]):
        return plain
    return dataset.with_format("numpy", list(inputs), output_all_columns=True, dtype=np.float64)
