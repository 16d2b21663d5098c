"""One of two classes a sample, told by one logit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deepteach.data.labels import encode, sorted_order
from deepteach.data.noise import BINARY_NOISE, NoiseOf
from deepteach.data.tasks.base import YES_OR_NO, Coded, LabelLoss, Parts, SlopeOf, Task
from deepteach.data.tasks.classification import Classification
from deepteach.data.validation import Numbers, label_in_message, refuse_one_class
from deepteach.errors import DataError


@dataclass(frozen=True)
class Binary(Classification):
    """Codes `(n,)` int64, 1 for the greater of any two labels; logits `(b, 1)` or `(b,)`.

    The second class is predicted where the logit is above 0, or a probability above 1/2.
    """

    name: ClassVar[str] = "binary"
    indices: ClassVar[bool] = False
    answers: ClassVar[str] = YES_OR_NO
    noises: ClassVar[Mapping[str, NoiseOf]] = BINARY_NOISE

    @classmethod
    def coded(
        cls,
        ys: Parts,
        classes: int | None = None,
        names: Sequence[str | int] | None = None,
        numbers: Numbers | None = None,
    ) -> Coded:
        refuse_one_class(ys)
        if len({y.dtype.kind for y in ys.values()}) > 1:
            encode(ys, 2, numbers or {})  # says that text and numbers are mixed
        seen = np.unique(np.concatenate(list(ys.values())))
        if len(seen) != 2:
            shown = ", ".join(label_in_message(label) for label in seen[:5])
            raise DataError(
                f"task binary has two labels, and these are {len(seen)} ({shown}"
                f"{', ...' if len(seen) > 5 else ''}): correct them, or say task=classification"
            )
        codes = {name: (y == seen[1]).astype(np.int64) for name, y in ys.items()}
        if names is not None and seen.dtype.kind in "iu":
            called = tuple(names[int(label)] for label in seen)  # of three, two may have samples
        else:
            called = tuple(seen.tolist() if names is None else names)
        if seen.tolist() == [0, 1]:
            return Coded(cls(2, None if names is None else called), codes)
        return Coded(cls(2, called), codes, (sorted_order(called),))

    @property
    def outputs(self) -> int:
        return 1

    @property
    def loss(self) -> LabelLoss:
        return one_logit_loss

    def refuse_logits(self, logits: Tensor) -> None:
        Task.refuse_logits(self, logits)

    def _pushes(self, slope: SlopeOf, outputs: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        return Task._pushes(self, slope, outputs, codes)

    def predicted(self, logits: Tensor) -> Tensor:
        return self._holds(logits.flatten()).long()

    def probabilities(self, logits: Tensor) -> Tensor:
        second = self._chance(logits.flatten())
        return torch.stack([1 - second, second], 1)


def one_logit_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of labels 0 and 1 by one logit, `(b,)`."""
    flat = logits.flatten()
    return nn.functional.binary_cross_entropy_with_logits(
        flat, labels.to(flat.dtype), reduction="none"
    )
