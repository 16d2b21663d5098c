"""The default probe's means by source as fixed weights: the control of taught source weights."""

from __future__ import annotations

import torch
from torch import Tensor

from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.teachers.class_indices import class_indices
from deepteach.teachers.method import Method, MethodContext, recipe
from deepteach.teachers.trusted_probe import TrustedProbe


class SourceMeans(AbstractTeacher):
    """w = the mean over the samples of its source of the trusted probe's p(given label).

    Learned by no meta-gradient. The means are over the samples trained on since the probe was
    first fitted, those before each later fit counted `memory` times less; they take effect at
    the next fit, and until the first all samples weigh alike. A source that was not seen weighs
    the mean of all. A trusted sample that trains along (its group is -1) weighs 1.

    Args:
        sources: how many there are; 0: the given label is the source of a sample.
        classes: C.
        memory: in [0, 1].
        several: as of `TrustedProbe`.

    Raises:
        ConfigError: a memory out of range, or a batch without `group` where there are sources.
    """

    total: Tensor
    seen: Tensor
    means: Tensor

    def __init__(
        self, sources: int, classes: int, memory: float = 0.9, *, several: bool | None = None
    ) -> None:
        super().__init__()
        if not 0 <= memory <= 1:
            raise ConfigError(f"memory must lie in [0, 1], got {memory}")
        self.probe = TrustedProbe(several=several)
        self.by_label, self.memory = sources == 0, memory
        count = sources or classes
        self.register_buffer("total", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("means", torch.ones(count, dtype=torch.float64))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, snapshot: Snapshot) -> Tensor:
        source = self._source(snapshot)
        weight = self.means[source.clamp(min=0)]
        weight = torch.where(source < 0, torch.ones_like(weight), weight)
        return weight.log().to(snapshot.losses.dtype)

    @torch.no_grad()
    def observe(self, snapshot: Snapshot) -> None:
        # One column a source: a sum by index is not the same twice on every device.
        columns = torch.arange(len(self.means), device=self.means.device)
        member = (self._source(snapshot).unsqueeze(1) == columns).to(self.total)
        member = member * self.get_buffer("fitted")
        given = self.probe(snapshot)[:, 0].exp().to(self.total)
        self.total = self.total + given @ member
        self.seen = self.seen + member.sum(0)

    @torch.no_grad()
    def fit(self, trusted: Snapshot) -> None:
        self.probe.fit(trusted)
        self.fitted = torch.ones_like(self.get_buffer("fitted"))
        known, all_seen = self.seen > 0, self.seen.sum()
        mean = self.total.sum() / all_seen.clamp(min=1e-30)
        means = torch.where(known, self.total / self.seen.clamp(min=1e-30), mean)
        self.means = torch.where(all_seen > 0, means, self.means)
        self.total, self.seen = self.memory * self.total, self.memory * self.seen

    def _source(self, snapshot: Snapshot) -> Tensor:
        if self.by_label:
            return class_indices(snapshot, "source-means", "another teacher")
        if snapshot.group is None:
            raise ConfigError(
                "source-means reads the source of each sample: give coach.loss(x, y, group=...), "
                "or name the sources of the data by --group COLUMN or group_train"
            )
        return snapshot.group


@recipe("source-means")
def source_means(context: MethodContext, memory: float = 0.9) -> Method:
    """The probe's mean probability of the given label, by source, as fixed weights."""
    several = not context.task.exclusive
    teacher = SourceMeans(context.groups, context.classes, memory, several=several)
    return Method(teacher, window=1)
