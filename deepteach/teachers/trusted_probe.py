"""The trusted probe: does the given label fit the internal state, by trusted samples?"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from deepteach.core.feature import Feature
from deepteach.core.losses import margin
from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError
from deepteach.teachers.class_indices import class_indices
from deepteach.teachers.discriminant import discriminant

IMPOSSIBLE = -1e4
"""Score of a class that a fold has no sample of: exp of it is 0 in every precision."""


class TrustedProbe(Feature):
    """How well the given label fits the internal state, read through trusted samples.

    After each teacher update a linear discriminant analysis is fitted on the trusted
    states: class means m_c and a shared covariance (1-s) S + s mean(diag S) I. Its scores
    are divided by a temperature that cross-fitting in `folds` parts finds most likely. The
    feature is two numbers that carry none of the student's coordinates: the log-probability
    of the given label, clamped at `floor`, and its margin over the best other class.

    Until it has seen trusted samples, and for labels without any, both numbers are 0; so they
    are for negative labels, which losses ignore. Time and memory follow the number of trusted
    samples: not the square of the states' width, and not the number of classes without a
    trusted sample.

    Args:
        shrinkage: s, in [0, 1].
        folds: parts of the cross-fitting.
        floor: least log-probability.

    Raises:
        ConfigError: labels that are no class indices, when they are first seen; or a
            shrinkage outside [0, 1].
    """

    width = 2
    reads_trusted = True

    def __init__(self, *, shrinkage: float = 0.3, folds: int = 5, floor: float = -10.0) -> None:
        super().__init__()
        if not 0 <= shrinkage <= 1:
            raise ConfigError(f"TrustedProbe's shrinkage must lie in [0, 1], got {shrinkage}")
        self.shrinkage = shrinkage
        self.folds = folds
        self.floor = floor
        # Shapes are known only at the first fit; loading a state adopts the saved shapes.
        self.register_buffer("slope", torch.zeros(0, 0))
        self.register_buffer("offset", torch.zeros(0))
        self.register_buffer("temperature", torch.ones(()))
        self.register_load_state_dict_pre_hook(_adopt_shapes)

    def forward(self, snapshot: Snapshot) -> Tensor:
        states, labels = snapshot.internal, class_indices(snapshot, "TrustedProbe")
        slope, offset = cast(Tensor, self.slope), cast(Tensor, self.offset)
        if slope.numel() == 0:
            return states.new_zeros(len(states), 2)
        present, given = torch.isfinite(offset), labels.clamp(min=0)
        known = present[given] & (labels >= 0)
        # Found by a sort, which unlike a mask keeps the host from waiting for the device.
        classes = present.logical_not().byte().argsort(stable=True)[: slope.shape[1]]
        column = (present.cumsum(0) - 1).clamp(min=0)[given]  # that of an unknown label is any
        scores = states.to(slope.dtype) @ slope + offset[classes]
        scores = scores / cast(Tensor, self.temperature)
        log_probability = scores.log_softmax(1).gather(1, column.unsqueeze(1)).squeeze(1)
        gap = margin(scores, column)
        pair = [
            log_probability.clamp(min=self.floor),
            gap.clamp(self.floor, -self.floor),
        ]
        return (torch.stack(pair, 1) * known.to(slope.dtype).unsqueeze(1)).to(states.dtype)

    @torch.no_grad()
    def fit(self, trusted: Snapshot) -> None:
        labels = class_indices(trusted, "TrustedProbe")
        counted = labels >= 0  # negative ones are ignored, as by torch's cross-entropy
        if not counted.any():
            return
        states, labels = trusted.internal.detach()[counted].double(), labels[counted]
        classes = trusted.logits.shape[1]
        self.slope, self.offset = discriminant(states, labels, classes, self.shrinkage)
        self.temperature = self._temperature(states, labels, classes)

    def _temperature(self, states: Tensor, labels: Tensor, classes: int) -> Tensor:
        """The most likely T on parts that did not fit the discriminant.

        The parts take turns within each class. They are found here and not by scikit-learn,
        whose splits live on the CPU: this runs after every update, on the states' device.
        """
        order = torch.argsort(labels, stable=True)
        part = torch.empty_like(order)
        part[order] = torch.arange(len(order), device=order.device) % self.folds
        present, own = labels.unique(return_inverse=True)
        held_scores, held_labels = [], []
        for fold in range(self.folds):
            rest, held = part != fold, part == fold
            if not held.any() or not rest.any():
                continue
            slope, offset = discriminant(states[rest], labels[rest], classes, self.shrinkage)
            usable = torch.isfinite(offset)[labels[held]]
            scores = states.new_full((int(usable.sum()), len(present)), IMPOSSIBLE)
            fitted = torch.isfinite(offset)
            scores[:, fitted[present]] = states[held][usable] @ slope + offset[fitted]
            held_scores.append(scores)
            held_labels.append(own[held][usable])
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


def _adopt_shapes(module: nn.Module, state: dict, prefix: str, *_: object) -> None:
    if prefix + "slope" in state and prefix + "offset" in state:
        slope, present = state[prefix + "slope"], torch.isfinite(state[prefix + "offset"])
        if slope.shape[1] == len(present):  # earlier states have columns of absent classes too
            state[prefix + "slope"] = slope[:, present]
    for name in ("slope", "offset", "temperature"):
        if prefix + name in state:
            saved, present = state[prefix + name], getattr(module, name)
            setattr(module, name, torch.empty_like(saved, device=present.device))
