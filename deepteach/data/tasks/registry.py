"""The tasks by name, and which one labels are of where nobody says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepteach.data.tasks.base import Task
from deepteach.data.tasks.binary import Binary
from deepteach.data.tasks.classification import Classification
from deepteach.data.tasks.multilabel import MultiLabel
from deepteach.data.tasks.regression import Regression
from deepteach.data.tasks.soft import OneHot, SoftLabels, sum_to_one
from deepteach.data.validation import as_array
from deepteach.names import known

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, Binary, MultiLabel, Regression)
}

AUTO = "auto"

FRACTIONS = 0.1
"""Share of numbers that are not whole from which on they are quantities, and no slips."""

MANY_CLASSES = 100
"""Beyond so many whole numbers it is said that they are taken for classes."""


def kind_of(task: str, given: Mapping[str, Any]) -> type[Task]:
    """The task of that name, or the one that labels `given` by part are of.

    Rows of a single 1, or of probabilities, are classes; other rows of 0 and 1 several labels;
    other rows, and numbers of which many are fractions, quantities. All else is classes.

    Raises:
        ConfigError: an unknown name.
    """
    if task != AUTO and known("task", task, TASKS) is not Classification:
        return TASKS[task]
    parts = [as_array(y) for y in given.values() if y is not None]
    rows = [y for y in parts if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "buif"]
    if not rows:
        quantities = task == AUTO and _fractions(as_array(given["y_train"]))
        return Regression if quantities else Classification
    plain = all(bool(((y == 0) | (y == 1)).all()) for y in rows)
    if all(bool(sum_to_one(y).all()) for y in rows):
        return OneHot if plain else SoftLabels
    if task != AUTO:
        return SoftLabels  # which says what is wrong with the rows
    return MultiLabel if plain else Regression


def told_of(kind: type[Task], classes: int, named: bool) -> str | None:
    """What to tell where nobody said what the labels are; None where they are plain classes."""
    if kind is not Classification:
        others = " or ".join(name for name in TASKS if name != kind.name)
        return f"task {kind.name}, for {kind.signs}; if that is wrong, say task={others}"
    if classes > MANY_CLASSES and not named:
        return (
            f"task classification: {classes} whole numbers are taken for classes; say "
            "task=regression if they are quantities"
        )
    return None


def _fractions(y: np.ndarray) -> bool:
    if y.dtype.kind != "f" or not y.size or not np.isfinite(y).all():
        return False
    return bool((y != np.trunc(y)).mean() >= FRACTIONS)
