"""What the labels of a problem are: how they are read, learned, judged and shown.

Symbols: n samples; b samples of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from deepteach.data.noise import NoiseOf
from deepteach.data.tasks.metrics import Metric
from deepteach.data.validation import Numbers
from deepteach.errors import ConfigError, DataError

Parts = Mapping[str, np.ndarray]
"""Labels by part: y_train, y_valid, y_test, y_clean."""

LabelLoss = Callable[[Tensor, Tensor], Tensor]
"""`(logits, labels) -> (b,)`."""


@dataclass(frozen=True)
class Told:
    """Something that the user must be told; `warn`: also where nobody reads notes."""

    note: str
    warn: bool = False


def few(count: int) -> Told:
    """The warning of a small trusted set."""
    note = (
        f"only {count} validation samples: the teacher will follow their accidents; add trusted "
        "samples"
    )
    return Told(note, warn=True)


@dataclass(frozen=True)
class Coded:
    """The labels of all parts as a training reads them, and their task."""

    task: Task
    codes: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task(ABC):
    """The labels of one problem.

    Everything that differs from task to task is asked here, so that nothing else knows one
    by its name. Codes are labels as tensors: what losses, teachers and figures read.

    Args:
        classes: C: classes, or labels, or quantities of a sample.
        names: what the user calls each class, where it is not its code; numbers where labels
            were numbers.
    """

    classes: int = 2
    names: tuple[str | int, ...] | None = None

    name: ClassVar[str]
    """As `--task` says it."""
    of: ClassVar[str] = ""
    """What more there is to say of it in a message."""
    metrics: ClassVar[tuple[Metric, ...]]
    """What predictions are judged by; the first chooses the epoch."""
    signs: ClassVar[str] = ""
    """By what in the labels it is recognised."""
    noises: ClassVar[Mapping[str, NoiseOf]]
    """How labels can be made wrong on purpose, by the kinds of `noise.kind`."""
    indices: ClassVar[bool] = False
    """Codes are columns of the logits."""
    exclusive: ClassVar[bool] = True
    """A sample is of one class: the others are told by it."""
    real_valued: ClassVar[bool] = False
    """Labels are quantities, and there are no classes."""

    @property
    def texts(self) -> list[str]:
        """What each class is called, as text; its code where it has no name."""
        return list(map(str, self.names or range(self.classes)))

    # How they are read.

    @classmethod
    @abstractmethod
    def read(cls, value: Any, name: str, numbers: Numbers | None = None) -> np.ndarray:
        """What is given as `name` (y_train, ...) as an array, before anything is coded.

        Raises:
            DataError: it cannot be labels of this task.
        """

    @classmethod
    @abstractmethod
    def coded(
        cls,
        ys: Parts,
        classes: int | None = None,
        names: Sequence[str | int] | None = None,
        numbers: Numbers | None = None,
    ) -> Coded:
        """Codes of what `read` returned, the same in every part.

        Args:
            ys: by part.
            classes: their number, unless it is to be read off.
            names: what the user calls each class, where a reader of files knows it.
            numbers: the user's own row numbers.

        Raises:
            DataError: labels that nothing can be learned from, or that do not agree.
        """

    @abstractmethod
    def refuse_strange(self, codes: Parts) -> None:
        """Raise DataError for codes that are not of this task; of `Data` that was made by hand."""

    def told(self, codes: Parts) -> list[Told]:
        """What the user must be told of these labels."""
        return []

    def strata(self, codes: np.ndarray) -> np.ndarray:
        """`(n,)` whole numbers from 0: a part that is split off has its share of each."""
        return codes

    def refuse_rare(self, codes: np.ndarray) -> None:
        """Raise DataError where training labels are too rare for a part to be split off."""
        if np.bincount(self.strata(codes)).max(initial=0) < 2:
            raise DataError("no two labels of y_train are alike: give x_valid and y_valid")

    # How they are learned.

    @property
    def outputs(self) -> int:
        """Columns of the student's logits."""
        return self.classes

    def learned(self, codes: Tensor) -> Tensor:
        """The codes as losses and teachers read them, of the same shape."""
        return codes

    @property
    def loss(self) -> LabelLoss | None:
        """A sample's loss unless the user gives one; None for the cross-entropy of `Coach`."""
        return None

    def refuse_logits(self, logits: Tensor) -> None:
        """Raise ConfigError for logits of a shape that these labels cannot have."""
        count, outputs = len(logits), self.outputs
        shape = tuple(logits.shape)
        if shape == (count, outputs) or (outputs == 1 and shape == (count,)):
            return
        raise ConfigError(
            f"the student returns logits of shape {tuple(logits.shape)} for {count} samples of "
            f"task {self.name}: expected ({count}, {outputs})"
        )

    @abstractmethod
    def counts(self, codes: Tensor) -> Tensor:
        """`(C,)` int64: how many samples are of each class, or have each label."""

    # How predictions are judged and shown.

    @abstractmethod
    def predicted(self, logits: Tensor) -> Tensor:
        """Predictions `(b, ...)`, coded as the labels are."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """`(b, C)` of each class, or of each label. Raises ConfigError where there are none."""
        raise ConfigError(f"task {self.name} has no classes, and so no probabilities of them")

    @abstractmethod
    def measured(self, logits: Tensor, codes: Tensor) -> Tensor:
        """Sums over samples, of which `figures` makes figures, `(any,)` float64.

        Those of parts of the samples may be added up.
        """

    @abstractmethod
    def figures(self, sums: Tensor) -> dict[str, float]:
        """By the keys of `metrics`."""

    def differ(self, one: Tensor, other: Tensor) -> Tensor:
        """`(n,)` bool: whether two labels of a sample say different things."""
        apart = one != other
        return apart if apart.dim() == 1 else apart.flatten(1).any(1)

    def suggested(self, given: Tensor, predicted: Tensor, weight: Tensor) -> Tensor:
        """The label that a finished run suggests, as codes.

        The predicted one where it differs from the given one and the sample weighs less than in
        plain training (1), else the given one.
        """
        changed = self.differ(predicted, given) & (weight < 1)
        return torch.where(changed.reshape(-1, *(1,) * (given.dim() - 1)), predicted, given)

    @abstractmethod
    def given_back(self, codes: Tensor) -> np.ndarray:
        """Labels `(n,)`, or `(n, ...)` rows, as the user gave them: text, whole numbers, units."""

    @abstractmethod
    def shown(self, codes: Tensor) -> list[Any]:
        """Labels as weights.csv shows them, one a sample."""

    @abstractmethod
    def parsed(self, text: str) -> Any:
        """The code of a label as `shown` shows it, or as people write it.

        Raises:
            ValueError: it is no label of this task; one line that says what is.
        """
