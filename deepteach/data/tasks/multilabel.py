"""Several labels a sample, each of which holds or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deepteach.data.noise import MULTILABEL_NOISE, NoiseOf
from deepteach.data.tasks.base import YES_OR_NO, Coded, LabelLoss, Parts, Task, Told, few
from deepteach.data.tasks.metrics import MICRO_F1, Metric
from deepteach.data.validation import Numbers, as_array, label_in_message, place
from deepteach.errors import DataError
from deepteach.names import first_few

BETWEEN = "|"
"""What stands between the labels of a sample in text."""

NO_LABEL = "-"
"""How a sample without labels is shown."""


@dataclass(frozen=True)
class MultiLabel(Task):
    """Codes `(n, k)` float32 of 0 and 1; logits `(b, k)`, a label holding where one is above 0.

    Of probabilities, where one is above 1/2. A sample's loss is the mean over its labels.
    """

    name: ClassVar[str] = "multilabel"
    signs: ClassVar[str] = "the rows are of 0 and 1, and do not all hold a single 1"
    metrics: ClassVar[tuple[Metric, ...]] = (MICRO_F1,)
    exclusive: ClassVar[bool] = False
    answers: ClassVar[str] = YES_OR_NO
    noises: ClassVar[Mapping[str, NoiseOf]] = MULTILABEL_NOISE

    @classmethod
    def read(cls, value: Any, name: str, numbers: Numbers | None = None) -> np.ndarray:
        y = as_array(value)
        if y.ndim == 1 and len(y) and all(isinstance(item, str) for item in y.tolist()):
            return y.astype(np.str_)
        if y.ndim != 2 or y.dtype.kind not in "buif" or 0 in y.shape:
            raise DataError(
                f"{name} has shape {y.shape} and dtype {y.dtype}: task multilabel reads rows "
                f"(n, labels) of 0 and 1, or text with {BETWEEN} between labels"
            )
        rows = y.astype(np.float64)
        if y.dtype.kind != "b" and (rows == -1).any():
            rows = np.where(rows == -1, 0, np.where(rows == 0, np.nan, rows))
        wrong = np.argwhere((rows != 0) & (rows != 1))
        if len(wrong):
            row, column = wrong[0]
            raise DataError(
                f"{name} holds {y[row, column]} at {place(numbers, name, int(row))} (label "
                f"{column}): expected 0 and 1, or -1 and 1"
            )
        return rows.astype(np.float32)

    @classmethod
    def coded(
        cls,
        ys: Parts,
        classes: int | None = None,
        names: Sequence[str | int] | None = None,
        numbers: Numbers | None = None,
    ) -> Coded:
        if any(y.ndim == 1 for y in ys.values()):
            ys, names = _of_text(ys, names)
        widths = {name: y.shape[1] for name, y in ys.items()}
        width = classes or widths["y_train"]
        for name, found in widths.items():
            if found != width:
                raise DataError(f"{name} has {found} labels a sample, expected {width}: give all")
        _refuse_constant(ys)
        called = None if names is None else tuple(map(str, names))
        return Coded(cls(width, called), dict(ys))

    def refuse_strange(self, codes: Parts) -> None:
        for name, rows in codes.items():
            if rows.ndim != 2 or rows.shape[1] != self.classes or not np.isin(rows, (0, 1)).all():
                raise DataError(
                    f"{name} has shape {rows.shape}: expected 0 and 1, (n, {self.classes})"
                )
        _refuse_constant(codes)

    def told(self, codes: Parts) -> list[Told]:
        trusted, found = codes["y_valid"], []
        untrained = np.flatnonzero(
            ~codes["y_train"].any(0) & np.any([y.any(0) for y in codes.values()], 0)
        )
        if len(untrained):
            note = f"no training sample has {self._called(untrained)}"
            note += ": the student learns nothing there"
            found.append(Told(note, warn=True))
        constant = np.flatnonzero((trusted == trusted[0]).all(0))
        if len(constant):
            note = (
                f"all validation samples agree on {self._called(constant)}: the teacher learns "
                "nothing there"
            )
            moves = (codes["y_train"] != codes["y_train"][0]).any(0)
            found.append(Told(note, bool(moves[constant].any())))
        if len(trusted) < 10:
            found.append(few(len(trusted)))
        return found

    def _called(self, labels: np.ndarray) -> str:
        shown = first_few([label_in_message(self.texts[label]) for label in labels])
        return f"{'label' if len(labels) == 1 else 'labels'} {shown}"

    def strata(self, codes: np.ndarray) -> np.ndarray:
        rare = codes.sum(0).argsort(kind="stable")
        held = codes[:, rare] > 0
        return np.where(held.any(1), rare[held.argmax(1)] + 1, 0)

    @property
    def loss(self) -> LabelLoss:
        return several_logits_loss

    def counts(self, codes: Tensor) -> Tensor:
        return codes.sum(0).long()

    def predicted(self, logits: Tensor) -> Tensor:
        return self._holds(logits).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        return self._chance(logits)

    def measured(self, logits: Tensor, codes: Tensor) -> Tensor:
        said, true = self._holds(logits.reshape(codes.shape)), codes > 0.5
        return torch.stack([(said & true).sum(), said.sum(), true.sum()]).double()

    def figures(self, sums: Tensor) -> dict[str, float]:
        both, said, true = sums.tolist()
        return {MICRO_F1.key: 2 * both / (said + true) if said + true else 0.0}

    def given_back(self, codes: Tensor) -> np.ndarray:
        return codes.numpy().astype(np.int64)

    def shown(self, codes: Tensor) -> list[Any]:
        names = self.texts
        held = [[names[i] for i, on in enumerate(row) if on] for row in codes.tolist()]
        return [BETWEEN.join(row) or NO_LABEL for row in held]

    def parsed(self, text: str) -> Any:
        names = self.texts
        said = _labels_of(text)
        strange = sorted(said - set(names))
        if strange:
            raise ValueError(
                f"label {strange[0]!r} is none of {first_few(names)}: write them with {BETWEEN} "
                f"between, and {NO_LABEL} for none"
            )
        return [float(name in said) for name in names]


def several_logits_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of a sample's labels, each by its own logit, `(b,)`."""
    logits = logits.reshape(labels.shape)
    return nn.functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), reduction="none"
    ).mean(1)


def _of_text(
    ys: Parts, names: Sequence[str | int] | None
) -> tuple[dict[str, np.ndarray], Sequence[str]]:
    """Rows of 0 and 1 out of `cat|dog`, and the names of their columns."""
    told = next((name for name, y in ys.items() if y.ndim != 1), None)
    if told is not None:
        raise DataError(f"{told} holds numbers, and other parts text: give all the same labels")
    sets = {name: [_labels_of(text) for text in y.tolist()] for name, y in ys.items()}
    known = list(map(str, names or ())) or sorted(
        {label for rows in sets.values() for row in rows for label in row}
    )
    strange = {label for rows in sets.values() for row in rows for label in row} - set(known)
    if strange or not known:
        raise DataError(f"labels {sorted(strange)[:5]} are none of {list(known)[:5]}: correct them")
    rows = {
        name: np.array([[label in row for label in known] for row in found], np.float32)
        for name, found in sets.items()
    }
    return rows, known


def _labels_of(text: str) -> set[str]:
    return {part.strip() for part in text.split(BETWEEN)} - {"", NO_LABEL}


def _refuse_constant(codes: Parts) -> None:
    for name in ("y_valid", "y_train"):
        if name in codes and (codes[name] == codes[name][0]).all():
            raise DataError(f"all samples of {name} have the same labels: give some that differ")
