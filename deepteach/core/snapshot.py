"""A batch as the teacher may see it, and where training stands then."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from deepteach.core.batches.ignored import ignored, not_left_out
from deepteach.core.batches.nested import joined_batch, rows_of
from deepteach.core.later import Later, WhenAsked


@dataclass(frozen=True)
class Clock:
    """Where training stands when a batch is seen.

    Args:
        step: optimizer steps taken before it.
        total: steps of the whole training; None where it has no known end.
        mean_loss: mean over those steps of the batch's mean loss, unweighted; 0 before them.
        best_accuracy: the best accuracy on a trusted batch so far, in [0, 1].
    """

    step: int = 0
    total: int | None = None
    mean_loss: WhenAsked = WhenAsked()  # a float to its readers; until one asks it may be a Later
    best_accuracy: float = 0.0

    @property
    def progress(self) -> float:
        """Fraction of training done, in [0, 1]; without a known end it saturates towards 1."""
        return self.step / self.total if self.total else self.step / (self.step + 1000)

    def stepped(self, mean: float | Later) -> Clock:
        """After one more step, which makes this the mean loss."""
        return Clock(self.step + 1, self.total, mean, self.best_accuracy)

    def measured(self, accuracy: float | None) -> Clock:
        """After a trusted batch, whose accuracy is None where it is not known."""
        best = max(self.best_accuracy, accuracy or 0.0)
        # As it is kept: to read `mean_loss` would wait for the device.
        return Clock(self.step, self.total, vars(self)["_mean_loss"], best)


@dataclass(frozen=True)
class Snapshot:
    """One batch as the teacher may see it.

    Args:
        internal: `(batch, width)` internal states of the student.
        logits: `(batch, classes)`, or as the module returns them.
        labels: as given; they may be wrong.
        losses: `(batch,)` the student's loss of each sample under its given label.
        clock: where training stands.
        index: `(batch,)` int64, which samples these are; None where the loop does not say.
        group: `(batch,)` int64, the source that each comes from; None where unknown.
        mass: `(batch,)` how much each counts in the loss beside its weight; None: all alike.
    """

    internal: Tensor
    logits: Tensor
    labels: Tensor
    losses: Tensor
    clock: Clock = Clock()
    index: Tensor | None = None
    group: Tensor | None = None
    mass: Tensor | None = None

    def detach(self) -> Snapshot:
        """The same without a graph: what is held constant."""
        known = vars(self)
        if "_detached" in known:
            return self
        if "_held" not in known:  # asked several times a step, as what follows
            held = known["_held"] = Snapshot(
                *(self.internal.detach(), self.logits.detach(), self.labels, self.losses.detach()),
                *(self.clock, self.index, self.group, self.mass),
            )
            vars(held)["_detached"] = True
        return known["_held"]

    def ignored(self) -> Tensor | None:
        """Which samples the loss leaves out, `(batch,)`; None where labels cannot say so."""
        held = self.detach()
        known = vars(held)
        if "_ignored" not in known:
            known["_ignored"] = (
                ignored(held.logits, held.labels, held.losses)
                if held.mass is None
                else held.mass <= 0
            )
        return known["_ignored"]

    def count(self) -> int | Tensor:
        """How many samples the loss does not leave out."""
        return not_left_out(self.ignored(), len(self.losses))

    def total(self) -> int | Tensor:
        """What they count together: their masses, or their number where they count alike."""
        return self.count() if self.mass is None else self.mass.sum()

    def unmassed(self, weights: Tensor) -> Tensor:
        """Shares of the loss as multiples of what equal weights would give, up to one factor."""
        if self.mass is None:
            return weights
        return torch.where(self.mass > 0, weights / self.mass, 0.0).to(weights.dtype)

    def rows(self, rows: slice | Tensor) -> Snapshot:
        """A part of the batch, a slice or places: what has a row per sample is cut."""
        count = len(self.losses)
        return self._with({n: rows_of(v, rows, count) for n, v in self._columns().items()})

    def followed_by(self, *others: Snapshot) -> Snapshot:
        """This and others as one batch, at this one's clock."""
        columns = [part._columns() for part in (self, *others)]
        return self._with({name: joined_batch([c[name] for c in columns]) for name in columns[0]})

    def _columns(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "clock"}

    def _with(self, columns: dict[str, Any]) -> Snapshot:
        return replace(self, **columns)
