"""What the teacher reads of a sample: the student's states, its label, its loss.

A feature maps a `Snapshot` of one batch to `(batch, width)`. The names I0 to I3, M0 and
M1 are those of Fan et al., arXiv 2007.04649, section 4.3.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from deepteach.core.feature import Feature
from deepteach.core.losses import _margin
from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError


class Internal(Feature):
    """The internal state itself (I0 to I3, by the layer that the `Student` names)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, snapshot: Snapshot) -> Tensor:
        if snapshot.internal.shape[1] != self.width:
            raise ConfigError(
                f"Internal({self.width}) got states of width {snapshot.internal.shape[1]}: "
                f"use Internal({snapshot.internal.shape[1]})"
            )
        return snapshot.internal


class Label(Feature):
    """M0: the given label through an embedding E `(classes, dim)`, which the teacher learns."""

    def __init__(self, classes: int, dim: int = 16) -> None:
        super().__init__()
        self.width = dim
        self.embedding = nn.Embedding(classes, dim)

    def forward(self, snapshot: Snapshot) -> Tensor:
        if snapshot.labels.is_floating_point() or snapshot.labels.dim() != 1:
            raise ConfigError("Label needs integer labels of shape (batch,): drop this feature")
        return self.embedding(snapshot.labels)


class Surface(Feature):
    """M1, five components of the training so far and of the prediction.

    Progress, mean training loss so far, best validation accuracy so far, predicted label, margin.
    The paper leaves the encoding of the predicted label open; here it is its index scaled
    to [0, 1]. The margin is p_y - max over the other classes (Fan et al., 2018).
    """

    width = 5

    def forward(self, snapshot: Snapshot) -> Tensor:
        clock, logits = snapshot.clock, snapshot.logits
        predicted = logits.argmax(1).to(logits.dtype) / max(logits.shape[1] - 1, 1)
        margin = _margin(logits.softmax(1), snapshot.labels).clamp(-1, 1)
        common = [clock.progress, clock.mean_loss, clock.best_accuracy]
        return torch.cat(
            [
                logits.new_tensor(common).expand(len(logits), 3),
                predicted.unsqueeze(1),
                margin.unsqueeze(1),
            ],
            1,
        )


class Loss(Feature):
    """The sample's training loss, the only input of Meta-Weight-Net."""

    width = 1

    def forward(self, snapshot: Snapshot) -> Tensor:
        return snapshot.losses.unsqueeze(1)


class TrustedProbe(Feature):
    """How well the given label fits the internal state, read through trusted samples.

    After each teacher update a linear discriminant analysis is fitted on the trusted
    states: class means m_c and a shared covariance (1-s) S + s mean(diag S) I. Its scores
    are divided by a temperature that cross-fitting in `folds` parts finds most likely. The
    feature is two numbers that carry none of the student's coordinates: the log-probability
    of the given label, clamped at `floor`, and its margin over the best other class.

    Until it has seen trusted samples, and for labels without any, both numbers are 0.
    """

    width = 2
    reads_trusted = True

    def __init__(self, *, shrinkage: float = 0.3, folds: int = 5, floor: float = -10.0) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.folds = folds
        self.floor = floor
        # Shapes are known only at the first fit; loading a state adopts the saved shapes.
        self.register_buffer("slope", torch.zeros(0, 0))
        self.register_buffer("offset", torch.zeros(0))
        self.register_buffer("temperature", torch.ones(()))
        self.register_load_state_dict_pre_hook(_adopt_shapes)

    def forward(self, snapshot: Snapshot) -> Tensor:
        states, labels = snapshot.internal, snapshot.labels
        slope, offset = cast(Tensor, self.slope), cast(Tensor, self.offset)
        if slope.numel() == 0:
            return states.new_zeros(len(states), 2)
        scores = (states.to(slope.dtype) @ slope + offset) / cast(Tensor, self.temperature)
        known = torch.isfinite(offset)[labels].to(slope.dtype)
        # exp(-1e4) is 0 in every precision, and unlike -inf it has no NaN derivative.
        scores = torch.where(torch.isfinite(offset), scores, -1e4)
        log_probability = scores.log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
        margin = _margin(scores, labels)
        pair = [
            log_probability.clamp(min=self.floor),
            margin.clamp(self.floor, -self.floor),
        ]
        return (torch.stack(pair, 1) * known.unsqueeze(1)).to(states.dtype)

    @torch.no_grad()
    def fit(self, trusted: Snapshot) -> None:
        states, labels = trusted.internal.detach().double(), trusted.labels
        classes = trusted.logits.shape[1]
        slope, offset = _discriminant(states, labels, classes, self.shrinkage)
        self.slope, self.offset = slope, offset
        self.temperature = self._temperature(states, labels, classes)

    def _temperature(self, states: Tensor, labels: Tensor, classes: int) -> Tensor:
        """The most likely T on parts that did not fit the discriminant."""
        order = torch.argsort(labels, stable=True)
        part = torch.empty_like(order)
        part[order] = torch.arange(len(order), device=order.device) % self.folds
        held_scores, held_labels = [], []
        for fold in range(self.folds):
            rest, held = part != fold, part == fold
            if not held.any() or not rest.any():
                continue
            slope, offset = _discriminant(states[rest], labels[rest], classes, self.shrinkage)
            usable = torch.isfinite(offset)[labels[held]]
            scores = states[held][usable] @ slope + offset
            held_scores.append(torch.where(torch.isfinite(offset), scores, -1e4))
            held_labels.append(labels[held][usable])
        if not held_scores or sum(map(len, held_labels)) == 0:
            return states.new_ones(())
        scores, truth = torch.cat(held_scores), torch.cat(held_labels)
        grid = torch.logspace(-1, 3, 81, dtype=scores.dtype, device=scores.device)
        likelihood = torch.stack(
            [
                (scores / t).log_softmax(1).gather(1, truth.unsqueeze(1)).mean()
                for t in grid.unbind()
            ]
        )
        return grid[likelihood.argmax()]


def _discriminant(
    states: Tensor, labels: Tensor, classes: int, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Slopes `(width, classes)` and offsets `(classes,)`; -inf where a class has no sample."""
    member = nn.functional.one_hot(labels, classes).to(states.dtype)
    count = member.sum(0)
    means = (member.T @ states) / count.clamp(min=1).unsqueeze(1)
    centred = states - means[labels]
    covariance = centred.T @ centred / max(len(states) - int((count > 0).sum()), 1)
    spread = covariance.diagonal().mean().clamp(min=1e-12)
    eye = torch.eye(len(covariance), dtype=states.dtype, device=states.device)
    shrunk = (1 - shrinkage) * covariance + shrinkage * spread * eye
    slope = torch.linalg.solve(shrunk, means.T)
    offset = -0.5 * (means * slope.T).sum(1)
    return slope, torch.where(count > 0, offset, -torch.inf)


def _adopt_shapes(module: nn.Module, state: dict, prefix: str, *_: object) -> None:
    for name in ("slope", "offset", "temperature"):
        if prefix + name in state:
            saved, present = state[prefix + name], getattr(module, name)
            setattr(module, name, torch.empty_like(saved, device=present.device))
