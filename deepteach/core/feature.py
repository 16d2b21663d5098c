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

    unit: float | tuple[float, ...] = 1.0
    """Typical size of its numbers, of all or of each: a teacher may divide by it."""

    evidence: bool = False
    """The higher its numbers, the more speaks for the given label."""

    reads_trusted: bool = False
    """`fit` does something, so the teacher's update ends with a pass of trusted samples."""

    def forward(self, snapshot: Snapshot) -> Tensor:
        """`(batch, width)`, finite, of a batch; called with and without a graph."""
        raise NotImplementedError

    def fit(self, trusted: Snapshot) -> None:
        """Learn from trusted samples; most features need nothing.

        Called before the first window where trusted samples are known by then, and after every
        update of the teacher, never inside a window; `trusted` has no `index` and no `group`.
        """

    def observe(self, snapshot: Snapshot) -> None:
        """Remember a batch that was trained on; most features need nothing.

        Called once for every step, when no window holds it any more; `snapshot.index` says
        which samples they are, where the loop does.
        """

    @property
    def heard(self) -> Tensor | None:
        """`()` 1, or 0 where its word is good enough to rank samples by, and not to weigh them.

        None where that is never asked.
        """
        return None

    @property
    def observes(self) -> bool:
        """Whether `observe` does anything."""
        return type(self).observe is not Feature.observe
