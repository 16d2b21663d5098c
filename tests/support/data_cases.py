"""Arrays for the tests of data, and how two data sets or a refusal are judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from deepteach.data.dataset import Data
from deepteach.errors import DataError, DeepTeachError

torch.set_num_threads(1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def table(n: int = 120, classes: int = 3, columns: int = 4, seed: int = 0) -> dict[str, Any]:
    """Train and validation arrays, `n` and 30 rows, every class in both."""
    draw = rng(seed)
    return {
        "x_train": draw.normal(3, 5, (n, columns)),
        "y_train": np.arange(n) % classes,
        "x_valid": draw.normal(3, 5, (30, columns)),
        "y_valid": np.arange(30) % classes,
    }


def same(a: Data, b: Data) -> bool:
    fields = ("x_train", "y_train", "x_valid", "y_valid", "x_test", "y_test", "y_clean")
    pairs = [(getattr(a, f), getattr(b, f)) for f in fields]
    return all(torch.equal(p, q) if p is not None else q is None for p, q in pairs)


def refused(call: Callable[[], Any], words: str, kind: type[DeepTeachError] = DataError) -> None:
    """One line, of the right kind, with these words."""
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
