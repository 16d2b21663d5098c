"""The weights of a run's samples and sources, read back from weights.csv and groups.csv."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepteach.errors import DataError
from deepteach.runs.storage import one_line

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]\d+)?")
_NEEDED = ("index", "given_label", "predicted_label", "weight", "loss")
_OPTIONAL = ("group", "path")
_COLUMNS = {  # of weights.csv, in its order
    "index": "index",
    "path": "path",
    "given": "given_label",
    "predicted": "predicted_label",
    "suggested": "suggested_label",
    "weight": "weight",
    "loss": "loss",
    "group": "group",
    "true": "true_label",
}

AT_ONCE = 512
"""Samples shown or read at a time: as Python's own objects they take ten times their text."""

Cells = Callable[[list[str]], NDArray[Any]]
"""From the cells of a column to numbers or text."""


@dataclass(frozen=True)
class Weights:
    """The final weight of every training sample, in the order of their index.

    All columns are `(n,)`. Labels are kept as text: a class is a number or a name.
    `suggested` is the given label where the run suggests no other, `true` is "" where the truth
    is unknown. The source of a sample and its file are None where the run has no such column.
    """

    index: NDArray[np.int64]
    given: NDArray[np.str_]
    predicted: NDArray[np.str_]
    suggested: NDArray[np.str_]
    weight: NDArray[np.float64]
    loss: NDArray[np.float64]
    true: NDArray[np.str_]
    group: NDArray[np.str_] | None = None
    path: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Where the true label is known, `(n,)`."""
        return self.true != ""

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Where the given label is known to be wrong, `(n,)`."""
        return self.known & (self.true != self.given)

    @property
    def issue(self) -> NDArray[np.bool_]:
        """Where the run suggests another label than the given one, `(n,)`.

        That is where the student, at the end, predicts another one and the teacher weighs the
        sample less than plain training does (1); a quantity must also be missed by far more than
        most are (`Task.suggested`). No threshold is to be chosen: both must speak against it.
        """
        return self.suggested != self.given

    @property
    def quality(self) -> NDArray[np.float64]:
        """`(n,)` in [0, 1): w / (1 + w), 0.5 at the weight of plain training; low is bad."""
        return self.weight / (1 + self.weight)

    def columns(self) -> dict[str, NDArray[Any]]:
        """By the names of weights.csv; without those that the run does not have."""
        named = {name: getattr(self, field) for field, name in _COLUMNS.items()}
        return {name: column for name, column in named.items() if column is not None}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes among the given labels."""
        return class_order(self.given)

    def take(self, rows: NDArray[Any]) -> Weights:
        """These rows only, given as positions or as a mask."""
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        taken = {k: None if column is None else column[rows] for k, column in columns.items()}
        return Weights(**taken)  # pyright: ignore[reportArgumentType]

    def at(self, index: NDArray[Any]) -> Weights:
        """The rows of these sample indices, in their order.

        Raises:
            DataError: an index that weights.csv does not list.
        """
        rows = np.searchsorted(self.index, index).clip(max=max(len(self) - 1, 0))
        if len(index) and (not len(self) or (self.index[rows] != index).any()):
            raise DataError(
                "samples.safetensors names samples that weights.csv does not list: the two "
                "are of different runs; train again into an empty folder"
            )
        return self.take(rows)


@dataclass(frozen=True)
class GroupWeight:
    """A source of samples: how many there are, and their mean weight."""

    group: str
    samples: int
    mean_weight: float


def class_order(labels: NDArray[Any]) -> tuple[str, ...]:
    """The different labels in order: by value where all are numbers, else by name."""
    found = [str(label) for label in np.unique(labels).tolist()]
    numeric = all(_NUMBER.fullmatch(label) for label in found)
    return tuple(sorted(found, key=float) if numeric else sorted(found))


def read_weights(path: Path) -> Weights:
    """A run's weights.csv, also one of a run before there were suggestions and sources.

    Raises:
        DataError: it is missing or damaged.
    """
    columns = _columns(path, _NEEDED, _COLUMNS.values(), _KINDS)
    index, weight = columns["index"], columns["weight"]
    if len(np.unique(index)) != len(index):
        raise DataError(damaged(path, "an index comes twice"))
    if not np.isfinite(weight).all():
        raise DataError(damaged(path, "a weight is not finite"))
    given, predicted = columns["given_label"], columns["predicted_label"]
    suggested = columns.get("suggested_label")
    if suggested is None:  # as they are suggested where labels are classes
        suggested = np.where((predicted != given) & (weight < 1), predicted, given)
    true = columns.get("true_label", np.full(len(index), ""))
    optional = {name: columns.get(name) for name in _OPTIONAL}
    found = Weights(index, given, predicted, suggested, weight, columns["loss"], true, **optional)
    return found.take(np.argsort(index, kind="stable"))


def read_groups(path: Path) -> tuple[GroupWeight, ...]:
    """A run's groups.csv; nothing where it is not there.

    Raises:
        DataError: it is damaged.
    """
    if not path.exists():
        return ()
    needed = ("group", "samples", "mean_weight")
    columns = _columns(path, needed, needed, {})
    rows = zip(*(columns[name].tolist() for name in needed), strict=True)
    try:
        found = tuple(GroupWeight(name, int(count), float(mean)) for name, count, mean in rows)
        if not all(math.isfinite(one.mean_weight) for one in found):
            raise ValueError("a mean weight is not finite")
        return found
    except ValueError as error:
        raise DataError(damaged(path, error)) from error


def damaged(path: Path, why: object) -> str:
    """The line that says that a file of a run cannot be read, and what to do."""
    return (
        f"{path} cannot be read ({one_line(why)}): it is damaged; go on from a checkpoint with "
        "`deepteach train --resume`, or train again into an empty folder"
    )


def _columns(
    path: Path, needed: Collection[str], wanted: Collection[str], kinds: Mapping[str, Cells]
) -> dict[str, NDArray[Any]]:
    """Those `wanted` of a CSV file's columns, text unless `kinds` says more.

    A cell that is left out is empty. Lines become arrays in parts: as Python's own objects they
    take ten times as much.
    """
    if not path.is_file():
        raise DataError(damaged(path, "it is missing"))
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            names = next(reader, [])
            if missing := set(needed) - set(names):
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            places = {name: place for place, name in enumerate(names) if name in wanted}
            parts = {name: [kinds.get(name, _text)([])] for name in places}
            while lines := list(islice(reader, AT_ONCE)):
                lines = [line for line in lines if line]
                for name, place in places.items():
                    cells = [line[place] if place < len(line) else "" for line in lines]
                    parts[name].append(kinds.get(name, _text)(cells))
            return {name: np.concatenate(found) for name, found in parts.items()}
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, OverflowError) as error:
        raise DataError(damaged(path, error)) from error


def _text(cells: list[str]) -> NDArray[Any]:
    return np.array(cells, dtype=np.str_)


def _whole(cells: list[str]) -> NDArray[Any]:
    return np.array([int(cell) for cell in cells], dtype=np.int64)


def _number(cells: list[str]) -> NDArray[Any]:
    return np.array([float(cell) for cell in cells], dtype=np.float64)


def _number_or_nan(cells: list[str]) -> NDArray[Any]:
    return _number([cell or "nan" for cell in cells])


_KINDS: dict[str, Cells] = {"index": _whole, "weight": _number, "loss": _number_or_nan}
