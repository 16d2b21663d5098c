"""One class of several a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deepteach.data.labels import encode, labels_of
from deepteach.data.noise import CLASS_NOISE, NoiseOf
from deepteach.data.tasks.base import Coded, Parts, SlopeOf, Task, Told
from deepteach.data.tasks.metrics import ACCURACY, Metric
from deepteach.data.validation import (
    Numbers,
    is_number,
    label_in_message,
    refuse_one_class,
    refuse_out_of_range,
)
from deepteach.errors import ConfigError, DataError
from deepteach.names import first_few, hint


@dataclass(frozen=True)
class Classification(Task):
    """Codes `(n,)` int64 in 0..C-1; logits `(b, C)` or wider."""

    name: ClassVar[str] = "classification"
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY,)
    indices: ClassVar[bool] = True
    answers: ClassVar[str] = (
        "a logit, or a probability, for each class, the greater the likelier; of distances d "
        "return -d"
    )
    noises: ClassVar[Mapping[str, NoiseOf]] = CLASS_NOISE

    @classmethod
    def read(cls, value: Any, name: str, numbers: Numbers | None = None) -> np.ndarray:
        return labels_of(value, name, numbers)

    @classmethod
    def coded(
        cls,
        ys: Parts,
        classes: int | None = None,
        names: Sequence[str | int] | None = None,
        numbers: Numbers | None = None,
    ) -> Coded:
        refuse_one_class(ys)
        labels = encode(ys, classes, numbers or {})
        called = labels.names if names is None else tuple(names)
        return Coded(cls(labels.classes, called), labels.codes, labels.notes)

    def refuse_strange(self, codes: Parts) -> None:
        labels = {name: labels_of(y, name) for name, y in codes.items()}
        for name, y in labels.items():
            refuse_out_of_range(y, name, self.classes)
        refuse_one_class(labels)

    def told(self, codes: Parts) -> list[Told]:
        found, trusted = [], codes["y_valid"]
        trained = set(codes["y_train"].tolist())
        missing = sorted(set(range(self.classes)) - set(trusted.tolist()))
        if missing:
            note = (
                f"no validation sample of {self._called(missing)}: the teacher learns nothing there"
            )
            found.append(Told(note, bool(set(missing) & trained)))
        tested = set(codes["y_test"].tolist() if "y_test" in codes else ())
        if untrained := sorted((tested | set(trusted.tolist())) - trained):
            note = (
                f"no training sample of {self._called(untrained)}: the student learns nothing there"
            )
            found.append(Told(note, warn=True))
        if len(trusted) < max(10, 2 * self.classes):
            note = (
                f"only {len(trusted)} validation samples for {self.classes} classes: "
                "the teacher will follow their accidents; add trusted samples"
            )
            found.append(Told(note, warn=True))
        return found

    def _called(self, labels: list[int]) -> str:
        names = self.texts
        shown = first_few([label_in_message(names[label]) for label in labels])
        return f"{'class' if len(labels) == 1 else 'classes'} {shown}"

    def refuse_rare(self, codes: np.ndarray) -> None:
        labels, first, counts = np.unique(codes, return_index=True, return_counts=True)
        if (counts < 2).any():
            alone = int(np.argmin(counts))
            name = labels[alone] if self.names is None else self.names[labels[alone]]
            raise DataError(
                f"label {label_in_message(name)} occurs once in y_train (index {first[alone]}), "
                "too rarely to split off a validation set: correct it, or give x_valid and y_valid"
            )

    def refuse_logits(self, logits: Tensor) -> None:
        if logits.dim() == 2 and logits.shape[1] >= self.classes:
            return
        count = len(logits)
        one = self.classes == 2 and logits.numel() == count
        raise ConfigError(
            f"the student returns logits of shape {tuple(logits.shape)} for {count} samples of "
            f"{self.classes} classes: expected ({count}, {self.classes})"
            f"{', or say task=binary for one logit' if one else ''}"
        )

    def _pushes(self, slope: SlopeOf, outputs: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        labels = codes if codes.dim() == 1 else codes.argmax(1)
        said = codes if codes.dim() == 1 else torch.eye(self.classes).to(codes)[labels]
        up = -slope(outputs, said)[:, : self.classes]
        index = labels.unsqueeze(1)
        return up.gather(1, index), -up.scatter(1, index, 0)

    def counts(self, codes: Tensor) -> Tensor:
        return codes.bincount(minlength=self.classes)

    def predicted(self, logits: Tensor) -> Tensor:
        return logits[:, : self.classes].argmax(1)

    def probabilities(self, logits: Tensor) -> Tensor:
        rows = logits[:, : self.classes].double()
        if not self.of_probabilities:
            return rows.softmax(1)
        rows = rows.clamp(min=0) + 1e-30  # of a row without any, all classes are as likely
        return rows / rows.sum(1, keepdim=True)

    def right(self, logits: Tensor, codes: Tensor) -> Tensor:
        """`(b,)` bool: which predictions are right."""
        return self.predicted(logits) == codes

    def measured(self, logits: Tensor, codes: Tensor) -> Tensor:
        right = self.right(logits, codes)
        return torch.stack([right.sum(), right.new_tensor(len(codes), dtype=torch.int64)]).double()

    def figures(self, sums: Tensor) -> dict[str, float]:
        right, count = sums.float()  # the mean of float32 numbers, as it has always been
        return {ACCURACY.key: float(right / count)}

    def given_back(self, codes: Tensor) -> np.ndarray:
        return codes.numpy() if self.names is None else np.array(self.names)[codes.numpy()]

    def shown(self, codes: Tensor) -> list[Any]:
        names = self.names
        return codes.tolist() if names is None else [names[code] for code in codes.tolist()]

    def parsed(self, text: str) -> Any:
        names = self.texts
        if text in names:
            return names.index(text)
        for code, name in enumerate(names):  # spreadsheets write 3.0
            if is_number(text) and is_number(name) and float(text) == float(name):
                return code
        raise ValueError(f"label {text!r} is no class ({first_few(names)}){hint(text, names)}")
