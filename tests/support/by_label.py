"""A small student, a teacher that it does not move, and data, for black-box differences."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import deepteach as dt


class ByLabel(dt.AbstractTeacher):
    """One log weight a class: a feature that no student moves."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor([0.3, 0.0, -0.2], dtype=torch.float64))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.k[snapshot.labels]


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.between(self.a(x).tanh()))

    def between(self, h: Tensor) -> Tensor:
        return h


G = torch.Generator().manual_seed(1)
X = torch.randn(120, 6, generator=G, dtype=torch.float64)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
