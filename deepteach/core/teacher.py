"""Teachers: from a snapshot of a batch to the logarithm of each sample's raw weight.

Normalising the weights is not the teacher's business but the objective's
(`objective.normalise`), which is why a teacher answers in logarithms: no logit, however
large, can then turn a batch into 0/0.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deepteach.core.snapshot import Snapshot


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
