"""Losses of samples and of trusted batches, and the one normalisation of weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError
from deepteach.names import known

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""`(logits, labels) -> (batch,)`."""

ValidationLoss = Callable[[Tensor, Tensor], Tensor]
"""`(logits, labels) -> scalar`."""


def normalise(log_weights: Tensor) -> Tensor:
    """u = w / sum w, `(batch,)`, summing to 1; finite for every finite log weight.

    Done in log space: sigmoid weights themselves vanish below logits of about -104 in
    float32, and their quotient becomes NaN.
    """
    return torch.softmax(log_weights, 0)


def effective_fraction(weights: Tensor) -> Tensor:
    """Effective sample size (sum u)^2 / (n sum u^2): 1 for equal weights, 1/n for one sample."""
    return weights.sum().square() / (len(weights) * weights.square().sum())


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Per-sample cross-entropy, `(batch,)`."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def expected_accuracy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - mean p_y: one minus the expected accuracy of Wu et al., NeurIPS 2018."""
    return 1 - logits.softmax(1).gather(1, labels.unsqueeze(1)).mean()


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


def smooth_error(logits: Tensor, labels: Tensor, sharpness: float = 50.0) -> Tensor:
    """mean 2 sigmoid(k (max_j p_j - p_y)) - 1: a smooth 0/1 error, 0 where y is the top class.

    Just below a tie it saturates near 1. It is what the teacher of L2T-loss lowers (Wu et al.,
    NeurIPS 2018).

    Args:
        logits: `(batch, classes)`.
        labels: `(batch,)` int64.
        sharpness: k, 50 as in the authors' code.
    """
    p = logits.softmax(1)
    own = p.gather(1, labels.unsqueeze(1)).squeeze(1)
    return (2 * torch.sigmoid(sharpness * (p.amax(1) - own)) - 1).mean()


VALIDATION_LOSSES: dict[str, ValidationLoss] = {
    "nll": nn.functional.cross_entropy,
    "expected_accuracy": expected_accuracy_loss,
    "smooth_error": smooth_error,
}
"""What a teacher may be taught to lower, by name."""


def validation_loss_of(
    named: str | ValidationLoss | None, sample_loss: SampleLoss
) -> ValidationLoss:
    """The loss of a trusted batch: by name, as given, or the mean of the samples' own loss.

    Raises:
        ConfigError: an unknown name.
    """
    if named is None:
        if sample_loss is cross_entropy:
            return VALIDATION_LOSSES["nll"]
        return lambda logits, labels: sample_loss(logits, labels).mean()
    return known("validation_loss", named, VALIDATION_LOSSES) if isinstance(named, str) else named


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """Score of the given label minus the best score of any other, `(batch,)`."""
    own = scores.gather(1, labels.unsqueeze(1))
    others = scores.scatter(1, labels.unsqueeze(1), -torch.inf)
    return own.squeeze(1) - others.amax(1)
