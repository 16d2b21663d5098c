"""What the teacher reads of a sample: the student's states, its label, its loss.

A feature maps a `Snapshot` of one batch to `(batch, width)`. The names I0 to I3, M0 and
M1 are those of Fan et al., arXiv 2007.04649, section 4.3. `Internal` and `Loss` read a
sample whatever its labels are; `TrustedProbe` needs classes, or several labels 0 and 1,
`TrustedRegression` real-valued targets, `Group` the source of a sample, and the others class
indices; `History` remembers samples by their index.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepteach.core.feature import Feature
from deepteach.core.given import whole_number
from deepteach.core.losses import margin
from deepteach.core.snapshot import Clock, Snapshot
from deepteach.errors import ConfigError
from deepteach.teachers.class_indices import class_indices
from deepteach.teachers.group import Group
from deepteach.teachers.history import History
from deepteach.teachers.trusted_probe import TrustedProbe
from deepteach.teachers.trusted_regression import TrustedRegression

__all__ = [
    "Clock",
    "Feature",
    "Group",
    "History",
    "Internal",
    "Label",
    "Loss",
    "Snapshot",
    "Surface",
    "TrustedProbe",
    "TrustedRegression",
]


class Internal(Feature):
    """The internal state itself (I0 to I3, by the layer that the `Student` names).

    Args:
        width: of the state of one sample.

    Raises:
        ConfigError: states of another width, when they are first seen.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = whole_number("Internal's width", width)

    def forward(self, snapshot: Snapshot) -> Tensor:
        width = snapshot.internal.shape[1]
        if width != self.width:
            raise ConfigError(
                f"Internal({self.width}) got states of width {width}: use Internal({width}), or, "
                "where their length varies with the batch, dt.Student(pool='tokens')"
            )
        return snapshot.internal


class Label(Feature):
    """M0: the given label through an embedding E `(classes, dim)`, which the teacher learns.

    Args:
        classes: C; labels are 0..C-1.
        dim: numbers for each class.

    Raises:
        ConfigError: labels that are no class indices, or more classes, when they are first seen.
    """

    def __init__(self, classes: int, dim: int = 16) -> None:
        super().__init__()
        self.width = whole_number("Label's dim", dim)
        self.embedding = nn.Embedding(whole_number("Label's classes", classes), self.width)

    def forward(self, snapshot: Snapshot) -> Tensor:
        labels, known = class_indices(snapshot, "Label"), self.embedding.num_embeddings
        if snapshot.logits.shape[1] > known:
            raise ConfigError(
                f"Label({known}) got logits of {snapshot.logits.shape[1]} classes: "
                f"use Label({snapshot.logits.shape[1]})"
            )
        return self.embedding(labels.clamp(min=0))


class Surface(Feature):
    """M1, five components of the training so far and of the prediction.

    Progress, mean training loss so far, best validation accuracy so far, predicted label, margin.
    The paper leaves the encoding of the predicted label open; here it is its index scaled
    to [0, 1]. The margin is p_y - max over the other classes (Fan et al., 2018).

    Raises:
        ConfigError: labels that are no class indices, when they are first seen.
    """

    width = 5

    def forward(self, snapshot: Snapshot) -> Tensor:
        clock, logits = snapshot.clock, snapshot.logits
        predicted = logits.argmax(1).to(logits.dtype) / max(logits.shape[1] - 1, 1)
        labels = class_indices(snapshot, "Surface").clamp(min=0)
        gap = margin(logits.softmax(1), labels).clamp(-1, 1)
        common = [clock.progress, clock.mean_loss, clock.best_accuracy]
        return torch.cat(
            [
                logits.new_tensor(common).expand(len(logits), 3),
                predicted.unsqueeze(1),
                gap.unsqueeze(1),
            ],
            1,
        )


class Loss(Feature):
    """The sample's training loss, the only input of Meta-Weight-Net (Shu et al., NeurIPS 2019)."""

    width = 1

    def forward(self, snapshot: Snapshot) -> Tensor:
        return snapshot.losses.unsqueeze(1)
