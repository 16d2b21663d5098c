"""Which class is taken for which: forward correction that is taught."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepteach.core.losses import SampleLoss
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.teachers.class_indices import class_indices
from deepteach.teachers.group import rides
from deepteach.teachers.method import Method, MethodContext, recipe
from deepteach.teachers.shaping import Shaping

SURE_OF_ITSELF = 4.0
"""Logit of the diagonal before there is an estimate, in units of log(classes)."""


class Transition(Shaping):
    """-log sum_i p_i T_iy: the student says the true class, T how it comes to be labelled.

    T `(classes, classes)` has rows softmax(E + R). R is taught from 0 on. E starts near the
    identity; when the share `warm` of the training is done, it becomes the estimate from the
    trusted samples: row i is the mean of what the student, trained on given labels until then,
    says of trusted samples of class i (Hendrycks et al., NeurIPS 2018; the loss is that of
    Patrini et al., CVPR 2017). A class without trusted samples keeps its row. Trusted samples
    that ride along have T = 1.

    Args:
        classes: C.
        warm: share of the training after which T is estimated.
        weighing: gives the weights; all alike unless given.

    Raises:
        ConfigError: labels that are no class indices, when they are first seen.
    """

    estimate: Tensor
    sums: Tensor
    counts: Tensor
    ready: Tensor

    def __init__(
        self, classes: int, *, warm: float = 0.25, weighing: AbstractTeacher | None = None
    ) -> None:
        super().__init__(weighing)
        if not 0 <= warm < 1:
            raise ConfigError(f"Transition's warm share must lie in [0, 1), got {warm}")
        self.warm = warm
        self.rest = nn.Parameter(torch.zeros(classes, classes))
        sure = SURE_OF_ITSELF * torch.tensor(float(max(classes, 2))).log()
        self.register_buffer("estimate", sure * torch.eye(classes))
        self.register_buffer("sums", torch.zeros(classes, classes))
        self.register_buffer("counts", torch.zeros(classes))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    def matrix(self) -> Tensor:
        """T, `(classes, classes)`: T_ij = P(given j | true i)."""
        return (self.estimate + self.rest).softmax(1)

    def sample_losses(self, logits: Tensor, snapshot: Snapshot, loss: SampleLoss) -> Tensor:
        labels = class_indices(snapshot, "Transition", "another teacher")
        classes, counted = len(self.estimate), labels >= 0
        said = logits[:, :classes].log_softmax(1)
        towards = self.matrix().log().to(said.dtype).T[labels.clamp(min=0)]
        corrected = -(said + towards).logsumexp(1) * counted
        return torch.where(rides(snapshot), loss(logits, labels), corrected)

    @torch.no_grad()
    def fit(self, trusted: Snapshot) -> None:
        super().fit(trusted)
        if bool(self.ready):
            return
        labels, classes = class_indices(trusted, "Transition"), len(self.estimate)
        counted = labels >= 0
        said = trusted.logits[counted, :classes].softmax(1).to(self.sums)
        # The latest fits count most: the student of the first steps says nothing yet.
        self.sums.mul_(0.9).index_add_(0, labels[counted], said)
        self.counts.mul_(0.9).index_add_(0, labels[counted], torch.ones_like(said[:, 0]))
        if trusted.clock.progress >= self.warm:
            seen = (self.counts > 0).unsqueeze(1)
            mean = (self.sums + 1e-3) / (self.counts.unsqueeze(1) + 1e-3 * classes)
            self.estimate.copy_(torch.where(seen, mean.log(), self.estimate))
            self.ready.fill_(True)

    @property
    def reads_trusted(self) -> bool:
        return True


@recipe("transition")
def transition(context: MethodContext, warm: float = 0.25) -> Method:
    """Forward correction by a matrix estimated on the trusted set, then taught."""
    return Method(Transition(context.classes, warm=warm), teacher_rate=1e-2, window=1)
