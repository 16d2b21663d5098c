"""Teachers that shape the loss of a sample: a member of each kind that users write."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import deepteach as dt


class Curved(dt.Teacher):
    """Weights, and a loss that is a function of the given one."""

    shapes_loss = True

    def sample_losses(self, logits: Tensor, snapshot: dt.Snapshot, loss: Any) -> Tensor:
        own = loss(logits, snapshot.labels)
        return own * self(snapshot).exp() + 0.1 * own.square()


class Mixed(dt.Teacher):
    """The given label mixed with the one that the student predicts, by a learned share."""

    shapes_loss = True

    def sample_losses(self, logits: Tensor, snapshot: dt.Snapshot, loss: Any) -> Tensor:
        given = dt.Teacher.forward(self, snapshot).exp()
        other = snapshot.logits.argmax(1)
        return given * loss(logits, snapshot.labels) + (1 - given) * loss(logits, other)

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return torch.zeros_like(snapshot.losses)

    def log_trust(self, snapshot: dt.Snapshot) -> Tensor:
        return dt.Teacher.forward(self, snapshot)


class Shifted(dt.AbstractTeacher):
    """A learned shift of each class's logit, and a temperature."""

    shapes_loss = True

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(classes))
        self.temperature = nn.Parameter(torch.zeros(()))

    def sample_losses(self, logits: Tensor, snapshot: dt.Snapshot, loss: Any) -> Tensor:
        return loss(logits * self.temperature.exp() + self.shift, snapshot.labels)


class Corrected(dt.AbstractTeacher):
    """Forward correction: the loss of the labels that a transition matrix makes of the truth."""

    shapes_loss = True

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.transition = nn.Parameter(torch.zeros(classes, classes))

    def sample_losses(self, logits: Tensor, snapshot: dt.Snapshot, loss: Any) -> Tensor:
        noisy = logits.softmax(1) @ self.transition.softmax(1)
        return loss(noisy.log(), snapshot.labels)


class Candidates(dt.Teacher):
    """Candidate losses weighed against each other, and samples against samples."""

    shapes_loss = True

    def __init__(self, features: list[dt.Feature]) -> None:
        super().__init__(features)
        self.share = nn.Parameter(torch.zeros(3))

    def sample_losses(self, logits: Tensor, snapshot: dt.Snapshot, loss: Any) -> Tensor:
        p = logits.softmax(1)
        each = [
            loss(logits, snapshot.labels),
            (p * logits.log_softmax(1)).sum(1),
            1 - p.gather(1, snapshot.labels.unsqueeze(1)).squeeze(1),
        ]
        return torch.stack(each, 1) @ self.share.softmax(0)
