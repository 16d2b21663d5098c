"""What a teacher that remembers samples is shown: the batches that were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from deepteach.core.record import pack_snapshot, unpack_snapshot
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError


class Observations:
    """Batches wait here until no window holds them; then the teacher observes them.

    A memory that moved while a window is open would make a replayed step read other numbers
    than the step itself did.

    Args:
        teacher: who observes; nothing is kept for one that does not.
        ranks: the processes that train together. All of them are shown the whole batch, so
            that their memories stay equal.
        at_once: the teacher learns nothing, so there is no window to wait for.
    """

    def __init__(self, teacher: AbstractTeacher, ranks: Ranks, *, at_once: bool) -> None:
        self.teacher, self.ranks, self.at_once = teacher, ranks, at_once
        self.waiting: list[Snapshot] = []

    def add(self, snapshot: Snapshot, count: int) -> None:
        """A batch of `count` samples on all ranks was stepped on."""
        if self.teacher.observes:
            self.waiting.append(self._whole(snapshot, count))
            if self.at_once:
                self.deliver()

    @torch.no_grad()
    def deliver(self) -> None:
        """The window is closed: show what waited, in the order of the steps."""
        shown, self.waiting = self.waiting, []
        for snapshot in shown:
            self.teacher.observe(snapshot)

    def _whole(self, snapshot: Snapshot, count: int) -> Snapshot:
        own = len(snapshot.losses)
        if own == count:
            return snapshot
        expected = len(self.ranks.part(torch.empty(count)))
        if own != expected:
            raise ConfigError(
                f"a teacher that remembers samples needs batches spread evenly over processes: "
                f"this one has {own} of {count} samples, expected {expected}"
            )
        columns = {f.name: getattr(snapshot, f.name) for f in fields(snapshot)}
        columns = {
            name: self.ranks.whole(value, count)
            for name, value in columns.items()
            if isinstance(value, Tensor) and value.dim() > 0 and len(value) == own
        }
        return replace(snapshot, **columns)

    def state_dict(self) -> list[dict[str, Any]]:
        """What waits, as nested plain containers of tensors."""
        return [pack_snapshot(snapshot) for snapshot in self.waiting]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Continue where `state_dict` was taken."""
        self.waiting = [unpack_snapshot(item) for item in state]
