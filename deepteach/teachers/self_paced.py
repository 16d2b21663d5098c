"""Self-paced learning by fractions of each batch."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from deepteach.core.losses import log_of
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.teachers.method import Method, recipe

Softness = Literal["hard", "linear", "logarithmic", "logistic"]
Pace = Literal["linear", "geometric"]


class SelfPaced(AbstractTeacher):
    """Easy samples first: the share r of a batch with the lowest losses (Kumar et al., 2010).

    lambda is the r-quantile of the batch's losses, so the pace means the same on any data and
    at any stage. v by `kind`, zero above lambda but for the last:

        hard 1;  linear 1 - l/lambda;  logarithmic log(.9 l/lambda + .1) / log .1;
        logistic (1 + e^-lambda) / (1 + e^(l - lambda))

    The logarithmic form is published for 0 < lambda < 1: here the loss is measured in units
    that put lambda at 0.9. Weights are normalised, so that a step is as long for few samples
    as for many. Nothing is remembered between batches.

    Args:
        kind: "hard", "linear", "logarithmic" or "logistic".
        start: r at the start, in (0, 1].
        end: r from `full` on, in [start, 1].
        full: fraction of the training at which r reaches `end`, in (0, 1].
        pace: "linear" or "geometric" growth of r between them.

    Raises:
        ConfigError: an unknown kind or pace, or a share outside its range.
    """

    per_sample = False

    def __init__(
        self,
        kind: Softness = "hard",
        *,
        start: float = 0.5,
        end: float = 1.0,
        full: float = 0.8,
        pace: Pace = "linear",
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
        losses, left_out = snapshot.losses, snapshot.ignored()
        if left_out is None:
            left_out = torch.zeros_like(losses, dtype=torch.bool)
        losses = torch.where(left_out, losses.max() + 1, losses)  # behind all others
        share = self.share(snapshot.clock.progress)
        count = (share * (~left_out).sum().double() + 0.5).floor().long().clamp(min=1)
        threshold = losses.sort().values.gather(0, count.view(1) - 1).squeeze(0)
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


@recipe("spl")
def spl(
    kind: Softness = "hard",
    start: float = 0.5,
    end: float = 1.0,
    full: float = 0.8,
    pace: Pace = "linear",
) -> Method:
    """Self-paced learning by fractions of each batch."""
    return Method(SelfPaced(kind, start=start, end=end, full=full, pace=pace))
