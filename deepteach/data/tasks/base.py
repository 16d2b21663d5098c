"""What the labels of a problem are: how they are read, learned, judged and shown.

Symbols: n samples; b samples of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

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

SlopeOf = Callable[[Tensor, Tensor], Tensor]
"""`(outputs, labels)` to the slope of a loss in the outputs, NaN where it does not take them."""

SPANS = ((-4.0, 4.0, False), (-1.0, 1.0, False), (0.0, 1.0, True))
"""Where a loss may read outputs (low, high), and whether such outputs are probabilities.

Logits, or what is compared with -1 and 1, are cut at 0; probabilities in the middle of theirs.
"""

YES_OR_NO = "a logit that says yes above 0, or the probability of yes"
"""What an output is of which each is asked by itself."""


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
        of_probabilities: outputs of the student are probabilities, as a loss of the user's own
            reads them, and not logits.
    """

    classes: int = 2
    names: tuple[str | int, ...] | None = None
    of_probabilities: bool = field(default=False, kw_only=True)

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
    answers: ClassVar[str]
    """What a loss of the user's own must take the student's outputs for."""

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

    def read_by(self, slope: SlopeOf, outputs: Tensor, codes: Tensor) -> Self | None:
        """This task as a loss of the user's own reads outputs; None where that cannot be told.

        A prediction that is cut elsewhere than the loss cuts is wrong without a word. So the
        loss must push outputs towards the label wherever they may lie.

        Args:
            slope: of the loss.
            outputs: `(b, ...)` of the student, of which the shape counts.
            codes: `(b, ...)` as they are learned.
        """
        for low, high, probabilities in SPANS:
            edge = (high - low) / 20
            levels = (low + edge, (low + high) / 2, high - edge)
            pushes = [self._pushes(slope, torch.full_like(outputs, v), codes) for v in levels]
            never_away = all(
                bool((push >= -1e-6 * push.abs().max()).all()) for pair in pushes for push in pair
            )
            if never_away and bool((pushes[1][0] > 0).all()):
                return replace(self, of_probabilities=probabilities)
        return None

    def _pushes(self, slope: SlopeOf, outputs: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """How equal `outputs` are pushed to the label's own side, and from those of others."""
        yes = -slope(outputs, torch.ones_like(codes))
        return torch.stack([yes, slope(outputs, torch.zeros_like(codes))]), yes

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

    def _holds(self, outputs: Tensor) -> Tensor:
        """Whether each output, which says yes or no, says yes."""
        return outputs > (0.5 if self.of_probabilities else 0)

    def _chance(self, outputs: Tensor) -> Tensor:
        """The probability of yes that each says, float64."""
        wide = outputs.double()
        return wide.clamp(0, 1) if self.of_probabilities else wide.sigmoid()

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
