"""The weights that samples had, by their index, in a loop of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepteach.core.batches.distributed_batch import Totals
from deepteach.core.batches.numbered import refuse_unnumbered
from deepteach.core.record import Step
from deepteach.core.teacher import AbstractTeacher
from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError

STEPS_HELD = 64
"""Steps that are put aside before they are added up: on a GPU, reading an index waits for it."""


class Ledger:
    """How often each sample was trained on, and its mean weight then.

    A step adds the weights of its batch, 1 being that of plain training, or what the teacher
    ranks samples by, where that is not their weight. Samples that the loss ignores are left
    out. The memory is a sum and a count a sample (12 bytes), up to the largest index seen.

    Under a process group each rank keeps what it has seen; what is read here is of all ranks,
    so all of them must read.
    """

    def __init__(self, teacher: AbstractTeacher, ranks: Ranks) -> None:
        self._teacher, self._ranks = teacher, ranks
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._sums = torch.zeros(0, dtype=torch.float64)
        self._visits = torch.zeros(0, dtype=torch.int32)
        self._kept, self._closed = False, False

    def __len__(self) -> int:
        """How many samples were seen."""
        return len(self.index)

    @property
    def index(self) -> Tensor:
        """`(k,)` int64, rising: the samples that were seen."""
        return self._whole()[1].nonzero().squeeze(1)

    @property
    def weights(self) -> Tensor:
        """`(k,)` float64: the mean weight of each of `index`; 1 is that of plain training."""
        sums, visits = self._whole()
        seen = visits > 0
        return sums[seen] / visits[seen]

    @property
    def visits(self) -> Tensor:
        """`(k,)` int32: how often each of `index` was trained on."""
        visits = self._whole()[1]
        return visits[visits > 0]

    def __getitem__(self, index: Tensor | int) -> Tensor:
        """The mean weights of these samples; NaN where one was never seen. Raises ConfigError."""
        sums, visits = self._whole()
        try:
            asked = torch.as_tensor(index).cpu()
            if asked.dtype == torch.bool or asked.is_floating_point() or asked.is_complex():
                raise TypeError("no whole numbers")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"the ledger is asked for {str(index)[:40]!r}: give an index, or a tensor of some"
            ) from error
        asked = asked.long()
        inside = (asked >= 0) & (asked < len(visits))
        if not inside.any():
            return torch.full(asked.shape, torch.nan, dtype=torch.float64)
        place = torch.where(inside, asked, 0)
        return torch.where(inside, sums[place] / visits[place], torch.nan)

    def close(self) -> None:
        """Keep nothing: the loop has a memory of its own."""
        self._closed = True

    @torch.no_grad()
    def note(self, step: Step, whole: Totals | None) -> None:
        """A step was taken, of these totals on several ranks. Reads nothing back."""
        index = step.snapshot.index
        if index is None or self._closed:
            return
        count = len(step.weights) if whole is None else whole.count
        trust = trust_of(self._teacher, step, whole).double() * count
        left_out = step.snapshot.ignored()
        if left_out is not None:
            trust = trust.masked_fill(left_out, torch.nan)
        self._waiting.append((index.clone(), trust))
        self._kept = True
        if len(self._waiting) >= STEPS_HELD:
            self._add_up()

    def _add_up(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        index = torch.cat([part for part, _ in waiting]).cpu().long()
        trust = torch.cat([part for _, part in waiting]).cpu()
        index, trust = index[~trust.isnan()], trust[~trust.isnan()]
        if not len(index):
            return
        refuse_unnumbered(index, len(self._visits), 12)
        self._reach(int(index.max()) + 1)
        self._sums.index_add_(0, index, trust)
        self._visits.index_add_(0, index, torch.ones_like(index, dtype=torch.int32))

    def _reach(self, size: int) -> None:
        more = size - len(self._visits)
        if more > 0:
            self._sums = torch.cat([self._sums, self._sums.new_zeros(more)])
            self._visits = torch.cat([self._visits, self._visits.new_zeros(more)])

    def _whole(self) -> tuple[Tensor, Tensor]:
        """Sums and counts of all ranks."""
        self._add_up()
        if self._ranks.count == 1 or not self._kept:
            return self._sums, self._visits
        self._reach(int(self._ranks.table(len(self._visits)).max()))
        own = {"sums": self._sums, "visits": self._visits.double()}
        found = self._ranks.summed(own, "scalars")
        return found["sums"], found["visits"].to(torch.int32)

    def state_dict(self) -> dict[str, Any]:
        """Of all ranks; empty where nothing was kept."""
        if not self._kept:
            return {}
        sums, visits = self._whole()
        return {"ledger": {"sums": sums.clone(), "visits": visits.clone()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the first rank keeps what all had seen."""
        saved = state.get("ledger")
        self._waiting, self._kept = [], saved is not None
        sums, visits = self._sums.new_zeros(0), self._visits.new_zeros(0)
        if saved is not None and self._ranks.first:
            sums, visits = saved["sums"].cpu().clone(), saved["visits"].cpu().clone()
        self._sums, self._visits = sums, visits


@torch.no_grad()
def trust_of(teacher: AbstractTeacher, step: Step, whole: Totals | None) -> Tensor:
    """`(batch,)` what the samples of a step are ranked by, 1/n each where weights are equal.

    Their weights, whatever their mass, unless the teacher tells a wrong label otherwise. `whole`
    is the batch on all ranks, where there are several.
    """
    count, seen = len(step.weights) if whole is None else whole.count, step.snapshot
    if type(teacher).log_trust is AbstractTeacher.log_trust:
        if seen.mass is None:
            return step.weights
        total = seen.mass.sum() if whole is None else whole.mass
        return seen.unmassed(step.weights) * (total / count)
    return teacher.log_trust(seen).exp() / count
