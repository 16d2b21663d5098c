"""What a teacher may read of a sample: the base of all features."""

from __future__ import annotations

from torch import Tensor, nn

from deepteach.core.snapshot import Snapshot


class Feature(nn.Module):
    """A column block of the teacher's input. Subclass it, set `width` and write `forward`.

    Its parameters are taught with the teacher's. What it remembers of the training goes into
    buffers, so that checkpoints hold it. See docs/extending.md.
    """

    width: int
    """Numbers that it says of a sample; known when it is made."""

    reads_trusted: bool = False
    """`fit` does something, so the teacher's update ends with a pass of trusted samples."""

    def forward(self, snapshot: Snapshot) -> Tensor:
        """`(batch, width)`, finite, of a batch; called with and without a graph."""
        raise NotImplementedError

    def fit(self, trusted: Snapshot) -> None:
        """Learn from trusted samples; most features need nothing.

        Called after every update of the teacher, never inside a window; `trusted` has no
        `index` and no `group`.
        """
