"""The teacher of the paper: a linear map or a small network of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from deepteach.core.feature import Feature
from deepteach.core.given import whole_number
from deepteach.core.snapshot import Snapshot
from deepteach.teachers.reading import Reading


class Teacher(Reading):
    """w = sigmoid(z), z a linear map or an MLP of the concatenated features.

    With `hidden_layers=0` and the features `Internal`, `Label` this is the paper's teacher
    sigmoid(W_I I + W_M E y + b) (Fan et al., arXiv 2007.04649, section 3.3). The last layer
    starts near zero: teaching begins as plain training.

    Args:
        features: what it reads of a sample, side by side.
        hidden_layers: 0, 1, 2 are the paper's MLP-0, MLP-1, MLP-2; each is followed by a ReLU.
        hidden_width: of each of them; the width of the input unless given.

    Raises:
        ConfigError: no features, something that is not a `Feature`, or fewer than 0 layers.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        hidden_layers: int = 0,
        *,
        hidden_width: int | None = None,
    ) -> None:
        super().__init__(features)
        hidden_layers = whole_number("hidden_layers", hidden_layers, 0)
        width = sum(feature.width for feature in features)
        hidden = whole_number("hidden_width", hidden_width or width)
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
        dtype = cast(nn.Linear, next(iter(self.score))).weight.dtype
        read = [self._read(feature, snapshot).to(dtype) for feature in self._each_feature()]
        joined = torch.cat(read, 1) if len(read) > 1 else read[0]
        return nn.functional.logsigmoid(self.score(joined).squeeze(1))
