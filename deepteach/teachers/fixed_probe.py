"""The default teacher's probe as fixed weights: the control of its teaching."""

from __future__ import annotations

from torch import Tensor

from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.teachers.method import Method, MethodContext, recipe
from deepteach.teachers.trusted_probe import TrustedProbe


class FixedProbe(AbstractTeacher):
    """w = the trusted probe's probability of the given label, learned by no meta-gradient.

    The control of the default teacher, which reads the same probe: what is gained beyond it
    is due to teaching. Until the first fit all samples weigh alike.

    Args:
        several: as of `TrustedProbe`.
    """

    def __init__(self, *, several: bool | None = None) -> None:
        super().__init__()
        self.probe = TrustedProbe(several=several)

    def forward(self, snapshot: Snapshot) -> Tensor:
        return self.probe(snapshot)[:, 0]

    def fit(self, trusted: Snapshot) -> None:
        self.probe.fit(trusted)


@recipe("probe")
def probe(context: MethodContext) -> Method:
    """The default teacher's probe as fixed weights."""
    return Method(FixedProbe(several=not context.task.exclusive), window=1)
