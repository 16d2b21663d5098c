"""Early-learning regularisation: what a student said of a sample so far pulls its loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepteach.core.losses import SampleLoss
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.teachers.class_indices import class_indices
from deepteach.teachers.method import Method, MethodContext, recipe
from deepteach.teachers.sample_index import sample_index

MARGIN = 1e-4
"""Probabilities are held within [MARGIN, 1 - MARGIN], so that logarithms are finite."""


class EarlyLearning(AbstractTeacher):
    """l - weight * -log(1 - <p, t>), t <- beta t + (1 - beta) p a sample, p its softmax output.

    Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, NeurIPS
    2020, eq. 6: the target t of a sample is a running mean of the student's own predictions, the
    present one included, and held constant; it begins at 0. Published for CIFAR-10: weight 3,
    beta 0.7 (CIFAR-100: 7 and 0.9); the variant with two networks is not here.

    All samples weigh 1; they are ranked by what t says of the given label. A trusted sample that
    trains along (its index is n or more) has no target, and keeps its loss as it is.

    Args:
        samples: n, the number of training samples.
        classes: C.
        weight: lambda, 0 or more.
        beta: in [0, 1).

    Raises:
        ConfigError: no samples, a setting out of range, or a batch without `index`.
    """

    shapes_loss = True
    targets: Tensor

    def __init__(
        self, samples: int, classes: int, *, weight: float = 3.0, beta: float = 0.7
    ) -> None:
        super().__init__()
        if samples < 1:
            raise ConfigError("elr needs the number of training samples, 1 or more")
        if not (math.isfinite(weight) and weight >= 0 and 0 <= beta < 1):
            raise ConfigError(
                f"elr takes a weight of 0 or more and a beta in [0, 1), got weight={weight}, "
                f"beta={beta}"
            )
        self.weight, self.beta = weight, beta
        # The last row is that of all samples without a target, and is never read.
        self.register_buffer("targets", torch.zeros(samples + 1, classes))

    def sample_losses(self, logits: Tensor, snapshot: Snapshot, loss: SampleLoss) -> Tensor:
        labels = class_indices(snapshot, "elr", "another teacher")
        target, own = self._moved(snapshot)
        p = logits.softmax(1)[:, : target.shape[1]].clamp(MARGIN, 1 - MARGIN)
        agreement = (p * target.to(p.dtype)).sum(1)
        pull = torch.where(own, torch.log1p(-agreement), torch.zeros_like(agreement))
        return loss(logits, labels) + self.weight * pull

    def log_trust(self, snapshot: Snapshot) -> Tensor:
        labels = class_indices(snapshot, "elr", "another teacher").clamp(min=0)
        place, own = self._places(snapshot)
        said = self.targets[place].gather(1, labels.unsqueeze(1)).squeeze(1)
        trust = said.clamp(min=MARGIN).log().to(snapshot.losses.dtype)
        return torch.where(own, trust, torch.zeros_like(trust))

    @torch.no_grad()
    def observe(self, snapshot: Snapshot) -> None:
        place, _ = self._places(snapshot)
        self.targets[place] = self._moved(snapshot)[0]

    def _moved(self, snapshot: Snapshot) -> tuple[Tensor, Tensor]:
        """`(batch, classes)` targets after this batch, and `(batch,)` which samples have one."""
        place, own = self._places(snapshot)
        held = self.targets[place]
        p = snapshot.logits.detach().softmax(1)[:, : held.shape[1]].to(held.dtype)
        return self.beta * held + (1 - self.beta) * p, own

    def _places(self, snapshot: Snapshot) -> tuple[Tensor, Tensor]:
        index, count = sample_index(snapshot, "elr"), len(self.targets) - 1
        return index.clamp(max=count), index < count


@recipe("elr")
def elr(context: MethodContext, weight: float = 3.0, beta: float = 0.7) -> Method:
    """Early-learning regularisation."""
    teacher = EarlyLearning(context.samples, context.classes, weight=weight, beta=beta)
    return Method(teacher)
