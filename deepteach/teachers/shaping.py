"""Teachers that change the loss of a sample beside its weight: the base of four of them."""

from __future__ import annotations

from torch import Tensor

from deepteach.core.losses import SampleLoss
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.teachers.uniform import Uniform


class Shaping(AbstractTeacher):
    """A teacher around another one: that one weighs the samples, this one shapes their losses.

    Subclass it and write `sample_losses`.

    Args:
        weighing: gives the weights; all alike unless given.
    """

    shapes_loss = True

    def __init__(self, weighing: AbstractTeacher | None = None) -> None:
        super().__init__()
        self.weighing = Uniform() if weighing is None else weighing
        self.normalised, self.per_sample = self.weighing.normalised, self.weighing.per_sample

    def forward(self, snapshot: Snapshot) -> Tensor:
        return self.weighing(snapshot)

    def log_trust(self, snapshot: Snapshot) -> Tensor:
        return self.weighing.log_trust(snapshot)

    def sample_losses(self, logits: Tensor, snapshot: Snapshot, loss: SampleLoss) -> Tensor:
        raise NotImplementedError

    def fit(self, trusted: Snapshot) -> None:
        self.weighing.fit(trusted)

    def observe(self, snapshot: Snapshot) -> None:
        self.weighing.observe(snapshot)

    @property
    def observes(self) -> bool:
        return self.weighing.observes

    @property
    def reads_trusted(self) -> bool:
        return self.weighing.reads_trusted
