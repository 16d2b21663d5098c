"""What the student itself said of a sample in earlier epochs."""

from __future__ import annotations

import torch
from torch import Tensor

from deepteach.core.batches.numbered import refuse_unnumbered
from deepteach.core.feature import Feature
from deepteach.core.losses import margin
from deepteach.core.snapshot import Snapshot
from deepteach.teachers.class_indices import class_indices
from deepteach.teachers.fitted import adopt_shapes
from deepteach.teachers.sample_index import sample_index


class History(Feature):
    """The mean of what the student said of a sample each time it was trained on.

    Three numbers: log-probability of the given label, clamped at `floor`, its margin over the
    best other class (Pleiss et al., NeurIPS 2020: the area under the margin), and the
    log-probability of the class predicted. Before its first visit all are 0.

    The memory grows with the largest index, by three numbers and a count a sample.

    Args:
        floor: least log-probability.

    Raises:
        ConfigError: a batch without `index`, or labels that are no class indices, when they are
            first seen.
    """

    width = 3
    unit = (2.0, 5.0, 2.0)

    def __init__(self, *, floor: float = -10.0) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("sums", torch.zeros(0, self.width))
        self.register_buffer("visits", torch.zeros(0))
        adopt_shapes(self, ("sums", "visits"))

    def forward(self, snapshot: Snapshot) -> Tensor:
        index = sample_index(snapshot, "History")
        sums, visits = self.get_buffer("sums"), self.get_buffer("visits")
        if len(visits) == 0:
            return snapshot.losses.new_zeros(len(index), self.width)
        known, place = index < len(visits), index.clamp(max=len(visits) - 1)
        mean = sums[place] / visits[place].clamp(min=1).unsqueeze(1)
        return (mean * known.unsqueeze(1)).to(snapshot.losses.dtype)

    @torch.no_grad()
    def observe(self, snapshot: Snapshot) -> None:
        index, labels = sample_index(snapshot, "History"), class_indices(snapshot, "History")
        said = snapshot.logits.to(self.get_buffer("sums").dtype).log_softmax(1)
        given = said.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
        gap = margin(said, labels.clamp(min=0))
        columns = [given.clamp(min=self.floor), gap.clamp(self.floor, -self.floor)]
        told = torch.stack([*columns, said.max(1).values], 1)
        counted = (labels >= 0).to(told)  # negative labels are ignored, as by torch's cross-entropy
        refuse_unnumbered(index, len(self.get_buffer("visits")), 4 * (self.width + 1))
        self._grow(int(index.max()) + 1)
        self.get_buffer("sums").index_add_(0, index, told * counted.unsqueeze(1))
        self.get_buffer("visits").index_add_(0, index, counted)

    def _grow(self, length: int) -> None:
        visits = self.get_buffer("visits")
        missing = length - len(visits)
        if missing > 0:
            room = max(missing, len(visits))  # doubles, so that growing costs little in all
            self.visits = torch.cat([visits, visits.new_zeros(room)])
            sums = self.get_buffer("sums")
            self.sums = torch.cat([sums, sums.new_zeros(room, self.width)])
