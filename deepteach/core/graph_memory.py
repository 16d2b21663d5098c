"""How many training passes of a window keep their graphs, and what such a graph takes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from deepteach.core.derivatives.linearised import Linearised
from deepteach.core.record import Step
from deepteach.core.snapshot import Snapshot
from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError

AS_MANY_AS_FIT: Literal["auto"] = "auto"

Graphs = int | Literal["auto"]
"""How many of the last ones; "auto" as many as fit `GRAPHS` bytes."""

GRAPHS = 2**30
"""Bytes that the graphs of a window may take together where their number is "auto"."""


class GraphMemory:
    """A number of graphs; where it is "auto", found by counting what the first one saves.

    Args:
        wanted: what was asked for.

    Raises:
        ConfigError: it is no such number.
    """

    def __init__(self, wanted: Graphs = 0) -> None:
        if wanted != AS_MANY_AS_FIT and (type(wanted) is not int or wanted < 0):
            raise ConfigError(f"graphs must be 0 or more, or {AS_MANY_AS_FIT!r}, got {wanted!r}")
        self.wanted: Graphs = wanted
        self.bytes: int | None = None
        """Of one graph; None until one was counted."""
        self._saved: dict[int, int] = {}

    def of(self, window: int) -> int:
        """How many of the last training passes of a window hand over their graphs; one always."""
        found = self.wanted
        if found == "auto":
            found = 1 if self.bytes is None else GRAPHS // max(self.bytes, 1)
        return max(1, min(window, found))

    def counting(self, kept: bool) -> AbstractContextManager[object]:
        """While it is entered, what a graph that is `kept` saves is counted, if it need be."""
        if not kept or self.wanted != AS_MANY_AS_FIT or self.bytes is not None:
            return nullcontext()
        return saved_tensors_hooks(self._pack, lambda saved: saved)

    def _pack(self, saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        self._saved[storage.data_ptr()] = storage.nbytes()  # several tensors may share one
        return saved.detach()  # an output that its own node saves would keep itself alive

    def dropped(self) -> None:
        """The pass that was counted keeps no graph."""
        self._saved.clear()

    def counted(self, ranks: Ranks) -> None:
        """The graph is whole; the largest of any rank counts, so that all keep as many."""
        if self._saved:
            found, self._saved = sum(self._saved.values()), {}
            self.bytes = int(ranks.table(found).max())


class HeldGraphs:
    """The graphs that wait for the sweep: of the pending pass, and of steps that were taken."""

    def __init__(self) -> None:
        self.pending: Linearised | None = None
        # A `Step` is replaced by others as more is known of it; what it saw is not.
        self._taken: list[tuple[Snapshot, Linearised]] = []

    def stepped(self, step: Step | None) -> None:
        """The pending pass was stepped on; None where something else was."""
        graph, self.pending = self.pending, None
        if step is not None and graph is not None:
            self._taken.append((step.snapshot, graph))

    def take(self, steps: Sequence[Step]) -> dict[int, Linearised]:
        """The graphs of those steps that have one, by place; once."""
        places = {id(step.snapshot): place for place, step in enumerate(steps)}
        taken, self._taken = self._taken, []
        return {places[id(seen)]: graph for seen, graph in taken if id(seen) in places}

    def keep(self, steps: Sequence[Step]) -> None:
        """Let go of those of all other steps."""
        left = {id(step.snapshot) for step in steps}
        self._taken = [pair for pair in self._taken if id(pair[0]) in left]

    def drop(self) -> None:
        """Let all of them go."""
        self.pending, self._taken = None, []
