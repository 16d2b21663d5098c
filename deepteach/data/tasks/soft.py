"""Classes given as rows: of a single 1, or of probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from deepteach.data.labels import labels_of
from deepteach.data.noise import SHUFFLE, NoiseOf
from deepteach.data.tasks.base import Coded, Parts, Task, Told
from deepteach.data.tasks.classification import Classification
from deepteach.data.validation import (
    Numbers,
    as_array,
    place,
    refuse_one_class,
    refuse_out_of_range,
)
from deepteach.errors import DataError

SUM_TOLERANCE = 1e-3
"""How far from 1 the probabilities of a sample may sum to; they are divided by their sum."""


def sum_to_one(rows: np.ndarray) -> np.ndarray:
    """`(n,)` bool: which rows `(n, C)` are probabilities."""
    wide = rows.astype(np.float64)
    return (wide >= 0).all(1) & (np.abs(wide.sum(1) - 1) <= SUM_TOLERANCE)


@dataclass(frozen=True)
class OneHot(Classification):
    """Classes as rows `(n, C)` with a single 1, or, in some parts, as numbers; coded as classes."""

    signs: ClassVar[str] = "each row holds a single 1"

    @classmethod
    def read(cls, value: Any, name: str, numbers: Numbers | None = None) -> np.ndarray:
        return _rows(value, name, numbers)

    @classmethod
    def coded(
        cls,
        ys: Parts,
        classes: int | None = None,
        names: Sequence[str | int] | None = None,
        numbers: Numbers | None = None,
    ) -> Coded:
        width = _width(ys)
        plain = {name: y.argmax(1) if y.ndim == 2 else y for name, y in ys.items()}
        made = Classification.coded(plain, classes or width, names, numbers)
        return Coded(cls(made.task.classes, made.task.names), made.codes, made.notes)


@dataclass(frozen=True)
class SoftLabels(Classification):
    """Codes `(n, C)` float32, probabilities of the classes; logits `(b, C)`.

    A prediction is right where its likeliest class is that of the label. Labels of some parts
    may be given as class numbers.
    """

    of: ClassVar[str] = " of soft labels"
    signs: ClassVar[str] = "the rows are probabilities"
    indices: ClassVar[bool] = False
    noises: ClassVar[Mapping[str, NoiseOf]] = SHUFFLE

    @classmethod
    def read(cls, value: Any, name: str, numbers: Numbers | None = None) -> np.ndarray:
        return _rows(value, name, numbers)

    @classmethod
    def coded(
        cls,
        ys: Parts,
        classes: int | None = None,
        names: Sequence[str | int] | None = None,
        numbers: Numbers | None = None,
    ) -> Coded:
        width = _width(ys)
        codes = {}
        for name, y in ys.items():
            if y.ndim == 2:
                wide = y.astype(np.float64)
                codes[name] = (wide / wide.sum(1, keepdims=True)).astype(np.float32)
            elif y.dtype.kind == "U":
                raise DataError(f"{name} holds text beside rows of probabilities: number classes")
            else:
                refuse_out_of_range(y, name, width, numbers=numbers)
                codes[name] = np.eye(width, dtype=np.float32)[y]
        made = cls(width, None if names is None else tuple(names))
        refuse_one_class({name: y.argmax(1) for name, y in codes.items()})
        return Coded(made, codes)

    def refuse_strange(self, codes: Parts) -> None:
        for name, rows in codes.items():
            if rows.ndim != 2 or rows.shape[1] != self.classes or not sum_to_one(rows).all():
                raise DataError(
                    f"{name} has shape {rows.shape}: expected probabilities (n, {self.classes})"
                )
        refuse_one_class({name: rows.argmax(1) for name, rows in codes.items()})

    def told(self, codes: Parts) -> list[Told]:
        return super().told({name: rows.argmax(1) for name, rows in codes.items()})

    def strata(self, codes: np.ndarray) -> np.ndarray:
        return codes.argmax(1)

    def refuse_rare(self, codes: np.ndarray) -> None:
        super().refuse_rare(codes.argmax(1))

    def refuse_logits(self, logits: Tensor) -> None:
        Task.refuse_logits(self, logits)

    def counts(self, codes: Tensor) -> Tensor:
        return super().counts(codes.argmax(1))

    def predicted(self, logits: Tensor) -> Tensor:
        wide = self.probabilities(logits) if self.of_probabilities else logits.float().softmax(1)
        return wide.float()

    def right(self, logits: Tensor, codes: Tensor) -> Tensor:
        return logits.argmax(1) == codes.argmax(1)

    def differ(self, one: Tensor, other: Tensor) -> Tensor:
        return one.argmax(1) != other.argmax(1)

    def given_back(self, codes: Tensor) -> np.ndarray:
        return codes.numpy()

    def shown(self, codes: Tensor) -> list[Any]:
        return super().shown(codes.argmax(1))

    def parsed(self, text: str) -> Any:
        return np.eye(self.classes, dtype=np.float32)[super().parsed(text)]


def _rows(value: Any, name: str, numbers: Numbers | None) -> np.ndarray:
    y = as_array(value)
    if y.ndim < 2 or y.shape[1:] == (1,):
        return labels_of(value, name, numbers)
    if y.ndim != 2 or y.dtype.kind not in "buif" or not len(y):
        raise DataError(
            f"{name} has shape {y.shape} and dtype {y.dtype}: expected classes (n,), or their "
            "probabilities (n, classes)"
        )
    wrong = np.flatnonzero(~sum_to_one(y))
    if len(wrong):
        at = int(wrong[0])
        raise DataError(
            f"{name} has rows that are no probabilities ({len(wrong)} of {len(y)}; "
            f"{place(numbers, name, at)} sums to {y[at].astype(np.float64).sum():.6g}): expected "
            "rows that sum to 1; for several labels a sample say task=multilabel"
        )
    return y


def _width(ys: Parts) -> int:
    widths = {y.shape[1] for y in ys.values() if y.ndim == 2}
    if len(widths) != 1:
        told = " and ".join(str(width) for width in sorted(widths)) or "no"
        raise DataError(f"labels have {told} columns: give every part one for each class")
    return widths.pop()
