"""A batch as the teacher may see it, and where training stands then."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Clock:
    """Where training stands when a batch is seen."""

    step: int = 0
    total: int | None = None
    mean_loss: float = 0.0
    best_accuracy: float = 0.0

    @property
    def progress(self) -> float:
        """Fraction of training done; without a known end it saturates towards 1."""
        return self.step / self.total if self.total else self.step / (self.step + 1000)


@dataclass(frozen=True)
class Snapshot:
    """One batch as the teacher may see it.

    internal `(batch, width)`, logits `(batch, classes)`, labels as given, losses `(batch,)`.
    """

    internal: Tensor
    logits: Tensor
    labels: Tensor
    losses: Tensor
    clock: Clock = Clock()

    def detach(self) -> Snapshot:
        """The same without a graph: what is held constant."""
        return replace(
            self,
            internal=self.internal.detach(),
            logits=self.logits.detach(),
            losses=self.losses.detach(),
        )
