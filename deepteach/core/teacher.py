"""Teachers: from a snapshot of a batch to the logarithm of each sample's raw weight.

Normalising the weights is not the teacher's business but the objective's
(`losses.normalise`), which is why a teacher answers in logarithms: no logit, however
large, can then turn a batch into 0/0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deepteach.core.losses import SampleLoss
from deepteach.core.snapshot import Snapshot

if TYPE_CHECKING:  # an adjoint reads the objective, which has a teacher
    from deepteach.core.adjoint.base import AbstractAdjoint


class AbstractTeacher(nn.Module):
    """Maps a `Snapshot` to `(batch,)` log weights. A baseline is a teacher too."""

    normalised: bool = True
    """The objective divides by sum w; else by the batch size: (1/n) sum w l."""

    through: bool = False
    """The student's gradient passes through the weights even where the coach's
    `through_weights` is off (focal loss as published)."""

    shapes_loss: bool = False
    """`sample_losses` takes the place of the student's own loss of a sample."""

    per_sample: bool = True
    """What `forward` says of a sample does not depend on the others of its batch, which may
    be on other ranks."""

    def forward(self, snapshot: Snapshot) -> Tensor:
        """Log raw weights, `(batch,)`; 0 (all alike) for a teacher that only shapes the loss."""
        if self.shapes_loss:
            return torch.zeros_like(snapshot.losses)
        raise NotImplementedError

    def sample_losses(self, logits: Tensor, snapshot: Snapshot, loss: SampleLoss) -> Tensor:
        """The losses that the student descends, `(batch,)`, where the teacher `shapes_loss`.

        The objective is sum u l with u the normalised weights of `forward`. Each loss may be
        any differentiable function of that sample's own `logits`, which carry the student's
        graph: candidate losses weighed against each other, mixed labels, shifted classes. What
        is read of `snapshot` (states, recorded logits, losses) is held constant, as a feature.

        Args:
            logits: `(batch, classes)`, live.
            snapshot: the batch as the teacher reads it, without a graph unless `through`.
            loss: the student's own loss, `(logits, labels) -> (batch,)`.
        """
        raise NotImplementedError

    def log_trust(self, snapshot: Snapshot) -> Tensor:
        """What samples are ranked by, `(batch,)`, low where a label is distrusted.

        The log weights; a teacher that distrusts a label otherwise than by its sample's
        weight (one that mixes labels) answers with that.
        """
        return self(snapshot)

    def default_adjoint(self) -> AbstractAdjoint | None:
        """The adjoint this teacher needs where the coach is given none; None: any will do."""
        return None

    def fit(self, trusted: Snapshot) -> None:
        """See trusted samples after an update; most teachers need nothing."""

    def observe(self, snapshot: Snapshot) -> None:
        """See a batch that was trained on, once for every step, in order.

        Called when no window holds the step any more: what is remembered of it (by
        `snapshot.index`, in buffers) must not move while a window is open. On several ranks
        it is the whole batch. Most teachers need nothing.
        """

    @property
    def observes(self) -> bool:
        """Whether `observe` does anything, so that batches are kept for it."""
        return type(self).observe is not AbstractTeacher.observe

    @property
    def reads_trusted(self) -> bool:
        """Whether `fit` does anything, so that a fixed teacher costs no validation pass."""
        return type(self).fit is not AbstractTeacher.fit
