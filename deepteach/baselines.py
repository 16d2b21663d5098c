"""Teachers from the literature that need no training of their own, or one lookahead step.

Each names its source and what it changes; docs/methods.md has the formulas side by side.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from deepteach.adjoint import AbstractAdjoint, MetaGradient, Window
from deepteach.errors import ConfigError
from deepteach.features import Loss, Snapshot
from deepteach.lookahead import Lookahead
from deepteach.objective import Validation
from deepteach.rules import State
from deepteach.teacher import AbstractTeacher, Teacher

NOTHING = -1e4
"""Log weight of a dropped sample: exp of it is 0 in every precision, and it is finite."""


def log_of(weights: Tensor) -> Tensor:
    """Log weights, `NOTHING` where a weight is 0."""
    return torch.where(weights > 0, weights.clamp(min=1e-30).log(), NOTHING)


def log_probability(snapshot: Snapshot) -> Tensor:
    """log p_y of the given labels, `(batch,)`."""
    if snapshot.labels.is_floating_point() or snapshot.labels.dim() != 1:
        raise ConfigError("this teacher needs integer labels of shape (batch,): use another one")
    return snapshot.logits.log_softmax(1).gather(1, snapshot.labels.unsqueeze(1)).squeeze(1)


class Focal(AbstractTeacher):
    """w = (1 - p_y)^gamma, not normalised: L = (1/n) sum w l (Lin et al., ICCV 2017).

    The source differentiates through w; `through=False` takes it as a constant weight, as
    the L2T papers describe it. It raises the weight of high losses, wrong labels among them.
    """

    normalised = False

    def __init__(self, gamma: float = 2.0, *, through: bool = True) -> None:
        super().__init__()
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ConfigError(f"Focal's gamma must be 0 or more, got {gamma}")
        self.gamma, self.through = gamma, through

    def forward(self, snapshot: Snapshot) -> Tensor:
        # 1 - p from log p keeps its digits near p = 1; at p = 1 the derivative is 0, not NaN.
        rest = -torch.expm1(log_probability(snapshot))
        return self.gamma * rest.clamp(min=torch.finfo(rest.dtype).tiny).log()


Softness = Literal["hard", "linear", "logarithmic", "logistic"]


class SelfPaced(AbstractTeacher):
    """Easy samples first: the share r of a batch with the lowest losses (Kumar et al., 2010).

    r grows from `start` to `end` with the progress of training, linearly or geometrically
    (`pace`), reaching `end` at `full`. lambda is the r-quantile of the batch's losses, so the
    pace means the same on any data and at any stage. v, zero above lambda but for the last:

        hard 1;  linear 1 - l/lambda;  logarithmic log(.9 l/lambda + .1) / log .1;
        logistic (1 + e^-lambda) / (1 + e^(l - lambda))

    The logarithmic form is published for 0 < lambda < 1: here the loss is measured in units
    that put lambda at 0.9. Weights are normalised, so that a step is as long for few samples
    as for many. Nothing is remembered between batches.
    """

    per_sample = False

    def __init__(
        self,
        kind: Softness = "hard",
        *,
        start: float = 0.5,
        end: float = 1.0,
        full: float = 0.8,
        pace: Literal["linear", "geometric"] = "linear",
    ) -> None:
        super().__init__()
        if kind not in _PACED:
            raise ConfigError(f"SelfPaced's kind must be one of {', '.join(_PACED)}, got {kind!r}")
        if pace not in ("linear", "geometric"):
            raise ConfigError(f"SelfPaced's pace must be linear or geometric, got {pace!r}")
        if not 0 < start <= end <= 1 or not 0 < full <= 1:
            raise ConfigError(
                "SelfPaced takes 0 < start <= end <= 1 and 0 < full <= 1, got "
                f"start={start}, end={end}, full={full}"
            )
        self.kind, self.start, self.end, self.full, self.pace = kind, start, end, full, pace

    def share(self, progress: float) -> float:
        """r after that fraction of the training."""
        done = min(1.0, progress / self.full)
        if self.pace == "linear":
            return self.start + (self.end - self.start) * done
        return self.start * (self.end / self.start) ** done

    def forward(self, snapshot: Snapshot) -> Tensor:
        losses = snapshot.losses
        count = max(1, math.floor(self.share(snapshot.clock.progress) * len(losses) + 0.5))
        threshold = losses.kthvalue(count).values
        weights = _PACED[self.kind](losses, threshold)
        if self.kind != "logistic":
            weights = torch.where(losses <= threshold, weights, 0.0)
        # A batch of equal losses, or a single kept sample, has no soft order: all weigh alike.
        weights = torch.where(weights.max() > 0, weights, (losses <= threshold).to(losses.dtype))
        return log_of(weights)


def _ratio(losses: Tensor, threshold: Tensor) -> Tensor:
    return losses / threshold.clamp(min=torch.finfo(losses.dtype).tiny)


_PACED = {
    "hard": lambda l, t: torch.ones_like(l),  # noqa: E741
    "linear": lambda l, t: 1 - _ratio(l, t),  # noqa: E741
    "logarithmic": lambda l, t: (0.9 * _ratio(l, t) + 0.1).log() / math.log(0.1),  # noqa: E741
    "logistic": lambda l, t: (1 + (-t).exp()) / (1 + (l - t).exp()),  # noqa: E741
}


class MetaWeightNet(Teacher):
    """w = sigmoid(W2 relu(W1 l + b1) + b2) of the loss alone, 100 hidden units.

    Shu et al., NeurIPS 2019, with torch's default initialisation throughout, as there. One
    published script normalises the weights in a batch, the other does not (`normalised`).
    The published training is `Coach(..., MetaWeightNet(), interval=1, window=1,
    adjoint=Lookahead())`; any other adjoint teaches the same network by a longer window.
    """

    def __init__(self, hidden: int = 100, *, normalised: bool = True) -> None:
        super().__init__([Loss()], hidden_layers=1, hidden_width=hidden)
        cast(nn.Linear, self.score[-1]).reset_parameters()
        self.normalised = normalised


class LearningToReweight(AbstractTeacher):
    """Free weights of each batch, from one lookahead step (Ren et al., ICML 2018).

        w~_i = max(<grad l_i(theta), grad L_valid(theta)>, 0),    u = w~ / sum w~

    which is the published derivative at eps = 0, its rate cancelled by the normalisation. A
    batch with all w~ = 0 gives no gradient; `idle` counts them. Nothing is remembered, so
    samples outside the step's batch weigh alike. Use `Coach(..., interval=1, window=1)`.
    """

    normalised = False
    per_sample = False
    idle: Tensor
    free: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("idle", torch.zeros((), dtype=torch.long))
        self.register_buffer("free", torch.zeros(0), persistent=False)
        self.step: int | None = None

    def default_adjoint(self) -> AbstractAdjoint:
        return _FreeWeights(self)

    def assign(self, step: int, slopes: Tensor) -> None:
        """Weights of the batch of that step, from its <grad l_i, grad L_valid>."""
        positive = slopes.clamp(min=0)
        total = positive.sum()
        self.idle += int(total == 0)
        shares = positive / torch.where(total > 0, total, 1.0)
        self.step, self.free = step, log_of(shares * len(shares))

    def forward(self, snapshot: Snapshot) -> Tensor:
        if self.step == snapshot.clock.step and len(self.free) == len(snapshot.losses):
            return self.free.to(snapshot.losses.dtype)
        return torch.zeros_like(snapshot.losses)


class _FreeWeights(Lookahead):
    """Sets the weights of the pending batch; the teacher has no parameters to descend."""

    def __init__(self, teacher: LearningToReweight) -> None:
        super().__init__()
        self.teacher = teacher
        self._given: int | None = None

    def keep(self, state: State, position: int, window: int) -> State | None:
        if self.teacher.step is not None and self.teacher.step == self._given:
            raise ConfigError(
                "LearningToReweight weighs every batch anew, but this one was not weighed: use "
                "Coach(..., interval=1, window=1) and call coach.update after each step"
            )
        self._given = self.teacher.step
        return None

    def gradient(self, window: Window, validation: Validation) -> MetaGradient:
        step, theta = window.steps[-1], window.final.theta
        along = validation.gradient(theta)
        # As derivatives with respect to log weights of 0, slopes come out divided by n.
        teacher, losses = self.teacher, step.snapshot.losses
        teacher.step, teacher.free = step.snapshot.clock.step, torch.zeros_like(losses)
        free = replace(window, omega={"free": teacher.free})
        teacher.assign(teacher.step, self.teacher_part(theta, step, free, along)["free"])
        return MetaGradient({}, None)
