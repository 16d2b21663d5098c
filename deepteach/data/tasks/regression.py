"""Quantities: one real number a sample, or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from deepteach.data.noise import SHUFFLE, NoiseOf
from deepteach.data.scaling import divisor
from deepteach.data.tasks.base import Coded, LabelLoss, Parts, SlopeOf, Task, Told, few
from deepteach.data.tasks.metrics import R2, RMSE, Metric
from deepteach.data.validation import Numbers, as_array, is_number, place
from deepteach.errors import DataError

STRATA = 5
"""Parts of equal size, by their first target, that a split takes its share of."""

FAR = 3.0
"""Distance from which a target may be wrong, in standard deviations of the training residuals.

They are told by the median, which some wrong targets do not move much.
"""

ASKED = (0.05, 0.3, 1.0, 3.0)
"""Distances from the target, in its standard deviations, at which a loss is asked for its slope.

Robust losses have none far away, and others none near by.
"""

LEAST = 1e-14
"""Of what was added up: digits from there on are rounding."""


@dataclass(frozen=True)
class Regression(Task):
    """Codes `(n, d)` float64, (target - mean) / scale; logits `(b, d)`, or `(b,)` of one.

    Mean and standard deviation are those of the training targets, so that a rate of learning
    does not depend on the unit; whatever is shown is in the user's own. Codes are learned as
    float32, and kept as float64, so that a given target is shown as it was given.

    Args:
        mean: of each of the d targets.
        scale: likewise, above 0.
    """

    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    name: ClassVar[str] = "regression"
    signs: ClassVar[str] = "y_train holds real numbers"
    metrics: ClassVar[tuple[Metric, ...]] = (R2, RMSE)
    exclusive: ClassVar[bool] = False
    real_valued: ClassVar[bool] = True
    noises: ClassVar[Mapping[str, NoiseOf]] = SHUFFLE
    answers: ClassVar[str] = "the standardised target itself, where the loss must be lowest"

    @classmethod
    def read(cls, value: Any, name: str, numbers: Numbers | None = None) -> np.ndarray:
        y = as_array(value)
        if y.dtype in (np.float16, np.float32):
            y = y.astype(np.str_)  # 0.1 of float32 is meant as 0.1, and shown so
        try:
            y = y.astype(np.float64) if y.dtype.kind in "buifOU" else y  # 007 of a file is text
        except (TypeError, ValueError):
            pass  # refused below
        if y.dtype.kind != "f" or y.ndim not in (1, 2) or 0 in y.shape:
            raise DataError(
                f"{name} has shape {y.shape} and dtype {y.dtype}: task regression reads numbers, "
                "(n,) or (n, targets)"
            )
        rows = y.reshape(len(y), -1)
        wrong = np.flatnonzero(~np.isfinite(rows).all(1))
        if len(wrong):
            raise DataError(
                f"{name} is not finite at {place(numbers, name, int(wrong[0]))} ({len(wrong)} of "
                f"{len(rows)} are not): give those targets, or remove the samples"
            )
        return rows

    @classmethod
    def coded(
        cls,
        ys: Parts,
        classes: int | None = None,
        names: Sequence[str | int] | None = None,
        numbers: Numbers | None = None,
    ) -> Coded:
        train = ys["y_train"]
        for name, y in ys.items():
            if y.shape[1] != train.shape[1]:
                raise DataError(
                    f"{name} has {y.shape[1]} targets a sample, y_train {train.shape[1]}: give as "
                    "many"
                )
        _refuse_constant(ys)
        mean = train.mean(0)
        scale = divisor(mean, train.std(0))
        with np.errstate(over="ignore"):
            codes = {name: (y - mean) / scale for name, y in ys.items()}
            learned = {name: found.astype(np.float32) for name, found in codes.items()}
        for name, found in learned.items():
            if len(wrong := np.flatnonzero(~np.isfinite(found).all(1))):
                raise DataError(
                    f"{name} holds a target too large for float32 at "
                    f"{place(numbers, name, int(wrong[0]))}: rescale the targets, or correct it"
                )
        task = cls(train.shape[1], None, tuple(mean.tolist()), tuple(scale.tolist()))
        return Coded(task, codes)

    def refuse_strange(self, codes: Parts) -> None:
        for name, y in codes.items():
            if y.ndim != 2 or y.shape[1] != self.classes or not np.isfinite(y).all():
                raise DataError(
                    f"{name} has shape {y.shape}: expected finite targets (n, {self.classes})"
                )
        _refuse_constant(codes)

    def told(self, codes: Parts) -> list[Told]:
        count = len(codes["y_valid"])
        return [few(count)] if count < 10 else []

    def strata(self, codes: np.ndarray) -> np.ndarray:
        first = codes[:, 0]
        return np.searchsorted(np.quantile(first, np.arange(1, STRATA) / STRATA), first)

    def refuse_rare(self, codes: np.ndarray) -> None:
        if len(codes) < 2 * STRATA:
            raise DataError(
                f"y_train has {len(codes)} targets, too few to split off a validation set: give "
                "x_valid and y_valid"
            )

    def learned(self, codes: Tensor) -> Tensor:
        return codes.float()

    @property
    def loss(self) -> LabelLoss:
        return squared_error

    def read_by(self, slope: SlopeOf, outputs: Tensor, codes: Tensor) -> Self | None:
        right = codes.reshape(outputs.shape).to(outputs.dtype)
        pushes = torch.stack(
            [side * slope(right + side * far, codes) for far in ASKED for side in (1, -1)]
        )
        never_away = bool((pushes >= 0).all())
        return self if never_away and bool((pushes > 0).any(0).all()) else None

    def counts(self, codes: Tensor) -> Tensor:
        return torch.zeros(0, dtype=torch.int64)

    def predicted(self, logits: Tensor) -> Tensor:
        return logits.float().reshape(len(logits), -1)

    def measured(self, logits: Tensor, codes: Tensor) -> Tensor:
        y = codes.double()
        missed = logits.double().reshape(y.shape) - y
        count = torch.full_like(y[:1].sum(0), len(y))
        return torch.stack([count, y.sum(0), y.square().sum(0), missed.square().sum(0)]).flatten()

    def figures(self, sums: Tensor) -> dict[str, float]:
        count, total, squares, missed = sums.double().reshape(4, -1)
        spread = squares - total.square() / count
        explained = torch.where(
            spread > 1e-12 * squares, 1 - missed / spread, (missed == 0).to(missed)
        )
        scale = torch.tensor(self.scale, dtype=torch.float64)
        each = (missed / count).sqrt() * scale
        return {R2.key: float(explained.mean()), RMSE.key: float(each.mean())}

    def differ(self, one: Tensor, other: Tensor) -> Tensor:
        away = torch.tensor(np.abs(self.mean) / np.array(self.scale)) + other.double().abs()
        return ((one - other).double().abs() > 10 * LEAST * away).any(1)

    def suggested(self, given: Tensor, predicted: Tensor, weight: Tensor) -> Tensor:
        missed = (predicted - given).abs()
        spread = 1.4826 * missed.median(0).values
        doubtful = (missed > FAR * spread) & (weight < 1).unsqueeze(1)
        said = torch.from_numpy(self._coded(self._predicted(predicted)))
        return torch.where(doubtful, said, given)

    def in_units(self, codes: Tensor) -> np.ndarray:
        """`(n, d)` float64 in the user's own units."""
        return codes.double().numpy() * np.array(self.scale) + np.array(self.mean)

    def given_back(self, codes: Tensor) -> np.ndarray:
        found = self.in_units(codes)
        return found[:, 0] if self.classes == 1 else found

    def shown(self, codes: Tensor) -> list[Any]:
        if codes.dtype == torch.float64:
            texts = [_texts(*pair) for pair in zip(self.in_units(codes).T, self.mean, strict=True)]
        else:
            texts = [[f"{v:.10g}" for v in column] for column in self._predicted(codes).T.tolist()]
        return [" ".join(row) for row in zip(*texts, strict=True)]

    def _predicted(self, codes: Tensor) -> np.ndarray:
        """`(n, d)` float64 in the user's own units, with the decimals that a float32 code has."""
        size = np.abs(self.mean) + np.array(self.scale)
        decimals = 6 - np.floor(np.log10(size)).astype(int)
        columns = zip(self.in_units(codes).T, decimals, strict=True)
        return np.stack([np.round(column, int(places)) for column, places in columns], 1) + 0.0

    def _coded(self, values: np.ndarray) -> np.ndarray:
        return (values - np.array(self.mean)) / np.array(self.scale)

    def parsed(self, text: str) -> Any:
        parts = text.split()
        values = np.array([float(part) if is_number(part) else np.nan for part in parts])
        if len(values) != self.classes or not np.isfinite(values).all():
            raise ValueError(f"label {text!r}: expected {self.classes} finite numbers, as given")
        return self._coded(values)


def _texts(values: np.ndarray, mean: float) -> list[str]:
    """Given targets as they were given: what centring and scaling rounded is not shown."""
    size = abs(mean) + np.abs(values - mean)
    places = -np.floor(np.log10(LEAST * np.where(size > 0, size, 1.0))).astype(int)
    pairs = zip(values.tolist(), places.tolist(), strict=True)
    return [f"{round(value, decimals) + 0.0:.15g}" for value, decimals in pairs]  # 0 and not -0


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Half the mean squared error of a sample's targets, `(b,)`: -log of a Gaussian's density.

    Without the half, rates of learning that are right for cross-entropy are too large.
    """
    return 0.5 * (logits.reshape(targets.shape) - targets).square().mean(1)


def _refuse_constant(codes: Parts) -> None:
    if (codes["y_train"] == codes["y_train"][0]).all():
        raise DataError("all targets of y_train are the same: there is nothing to predict")
