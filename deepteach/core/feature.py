"""What a teacher may read of a sample: the base of all features."""

from __future__ import annotations

from torch import Tensor, nn

from deepteach.core.snapshot import Snapshot


class Feature(nn.Module):
    """A column block of the teacher's input. Subclass it and set `width`.

    `forward(snapshot)` returns `(batch, width)`. `fit(trusted)` is called with a snapshot of
    trusted samples after every update of the teacher, never inside a window.
    """

    width: int
    reads_trusted: bool = False

    def forward(self, snapshot: Snapshot) -> Tensor:
        raise NotImplementedError

    def fit(self, trusted: Snapshot) -> None:
        """Learn from trusted samples; most features need nothing."""
