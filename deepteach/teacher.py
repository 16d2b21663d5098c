"""Teachers: from a snapshot of a batch to the logarithm of each sample's raw weight.

Normalising the weights is not the teacher's business but the objective's
(`objective.normalise`), which is why a teacher answers in logarithms: no logit, however
large, can then turn a batch into 0/0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepteach.errors import ConfigError
from deepteach.features import Feature, Snapshot


class AbstractTeacher(nn.Module):
    """Maps a `Snapshot` to `(batch,)` log weights. A baseline is a teacher too."""

    normalised: bool = True
    """The objective divides by sum w; else by the batch size: (1/n) sum w l."""

    through: bool = False
    """The student's gradient passes through the weights even where the coach's
    `through_weights` is off (focal loss as published)."""

    shapes_loss: bool = False
    """`forward` returns the `(batch,)` losses themselves, to be averaged, not log weights."""

    per_sample: bool = True
    """What `forward` says of a sample does not depend on the others of its batch, which may
    be on other ranks."""

    def forward(self, snapshot: Snapshot) -> Tensor:
        raise NotImplementedError

    def default_adjoint(self) -> Any:
        """The adjoint this teacher needs where the coach is given none; None: any will do."""
        return None

    def fit(self, trusted: Snapshot) -> None:
        """See trusted samples after an update; most teachers need nothing."""

    @property
    def reads_trusted(self) -> bool:
        """Whether `fit` does anything, so that a fixed teacher costs no validation pass."""
        return False


class Teacher(AbstractTeacher):
    """w = sigmoid(z), z a linear map or an MLP of the concatenated features.

    With `hidden_layers=0` and the features `Internal`, `Label` this is the paper's teacher
    sigmoid(W_I I + W_M E y + b) (Fan et al., section 3.3). Each hidden layer is followed by
    a ReLU and is as wide as the input unless `hidden_width` says otherwise.

    The last layer starts near zero: teaching begins as plain training.

    Raises:
        ConfigError: no features, or something that is not a `Feature`.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        hidden_layers: int = 0,
        *,
        hidden_width: int | None = None,
    ) -> None:
        super().__init__()
        if not features or not all(isinstance(item, Feature) for item in features):
            raise ConfigError("Teacher takes a non-empty list of dt.Feature objects")
        if hidden_layers < 0:
            raise ConfigError(f"hidden_layers must be 0 or more, got {hidden_layers}")
        self.features = nn.ModuleList(features)
        width = sum(feature.width for feature in features)
        hidden = hidden_width or width
        layers: list[nn.Module] = []
        for _ in range(hidden_layers):
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        last = nn.Linear(width, 1)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        self.score = nn.Sequential(*layers, last)
        self.width = width

    def forward(self, snapshot: Snapshot) -> Tensor:
        dtype = next(self.score.parameters()).dtype
        columns = [feature(snapshot).to(dtype) for feature in self._each_feature()]
        return nn.functional.logsigmoid(self.score(torch.cat(columns, 1)).squeeze(1))

    def fit(self, trusted: Snapshot) -> None:
        for feature in self._each_feature():
            feature.fit(trusted)

    @property
    def reads_trusted(self) -> bool:
        return any(feature.reads_trusted for feature in self._each_feature())

    def _each_feature(self) -> list[Feature]:
        return [feature for feature in self.features if isinstance(feature, Feature)]


class Uniform(AbstractTeacher):
    """w = 1: plain training, the baseline of every table."""

    def forward(self, snapshot: Snapshot) -> Tensor:
        return torch.zeros_like(snapshot.losses)
