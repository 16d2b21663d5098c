"""Losses of samples and of trusted batches, and the one normalisation of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepteach.core.batches.ignored import IGNORED, ignored, integral, mean_counted
from deepteach.core.batches.nested import size_of
from deepteach.errors import ConfigError, DeepTeachError
from deepteach.names import brief, known

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""`(logits, labels) -> (batch,)`."""


@dataclass(frozen=True)
class MassedLoss:
    """A loss of samples that do not count alike in the mean of a batch, sum(m l) / sum(m).

    So do sequences in the mean over tokens, or classes that have weights. A teacher's weight w
    makes of it sum(w m l) / sum(w m); a sample of mass 0 is left out.

    Args:
        losses: `(logits, labels) -> (batch,)`.
        mass: of labels, `(batch,)` and not negative; None where samples count alike.
    """

    losses: SampleLoss
    mass: Callable[[Any], Tensor | None]

    def __call__(self, logits: Tensor, labels: Any) -> Tensor:
        return self.losses(logits, labels)


def mass_of(loss: object, labels: Any) -> Tensor | None:
    """How much samples count in the mean of a loss, `(batch,)`; None where they do alike."""
    if not isinstance(loss, MassedLoss):
        return None
    mass = loss.mass(labels)
    if mass is None or (isinstance(mass, Tensor) and mass.dim() == 1):
        return mass
    shape = f" and shape {tuple(mass.shape)}" if isinstance(mass, Tensor) else ""
    raise ConfigError(
        f"the mass of a MassedLoss is of type {type(mass).__name__}{shape}: expected (batch,), a "
        "number that is not negative for each sample"
    )


ValidationLoss = Callable[[Tensor, Tensor], Tensor]
"""`(logits, labels) -> scalar`."""


def normalise(log_weights: Tensor) -> Tensor:
    """u = w / sum w, `(batch,)`, summing to 1; finite for every finite log weight.

    Done in log space: sigmoid weights themselves vanish below logits of about -104 in
    float32, and their quotient becomes NaN.
    """
    return torch.softmax(log_weights, 0)


def counted(log_weights: Tensor, left_out: Tensor | None) -> Tensor:
    """Log weights that leave those samples out."""
    return log_weights if left_out is None else log_weights.masked_fill(left_out, NOTHING)


def effective_fraction(weights: Tensor, count: int | Tensor | None = None) -> Tensor:
    """Effective sample size (sum u)^2 / (n sum u^2): 1 for equal weights, 1/n for one sample.

    n is the `count` of the samples that are not left out; all unless given. 1 where all are.
    """
    count = len(weights) if count is None else count
    return of_counted(weights.sum().square() / (count * weights.square().sum()), count)


def of_counted(fraction: Tensor, count: int | Tensor) -> Tensor:
    """An effective fraction, 1 where no sample counts: then the weights, too, say nothing."""
    return torch.where(count > 0, fraction, 1.0) if isinstance(count, Tensor) else fraction


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Per-sample cross-entropy, `(batch,)`, of classes or of their probabilities.

    Raises:
        ConfigError: other labels, or one logit, whose cross-entropy is always 0.
    """
    _refuse_unreadable(logits, labels, "loss", soft=True, values=False)
    try:
        return nn.functional.cross_entropy(logits, labels, reduction="none")
    except IndexError:  # torch's kernel looks at the values of classes itself
        _refuse_unreadable(logits, labels, "loss", soft=True)
        raise


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of `cross_entropy` over the labels that are not ignored, a scalar."""
    _refuse_unreadable(logits, labels, "validation_loss", soft=True, values=False)
    try:
        return nn.functional.cross_entropy(logits, labels)
    except IndexError:
        _refuse_unreadable(logits, labels, "validation_loss", soft=True)
        raise


def expected_accuracy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - mean p_y: one minus the expected accuracy of Wu et al., NeurIPS 2018."""
    _refuse_unreadable(logits, labels, "validation_loss", soft=False)
    own = logits.softmax(1).gather(1, labels.clamp(min=0).long().unsqueeze(1)).squeeze(1)
    return 1 - mean_counted(own, labels < 0)


def _refuse_unreadable(
    logits: Tensor, labels: Any, given: str, *, soft: bool, values: bool = True
) -> None:
    """Raises ConfigError: labels that are neither classes nor, if `soft`, their probabilities.

    `values`: look for classes that there are not, too.
    """
    remedy = f"give dt.Coach({given}=...) a loss of your own"
    if not isinstance(labels, Tensor):
        came = f"labels of type {type(labels).__name__}"
    elif logits.dim() != 2 or logits.shape[1] < 2:
        came = f"logits of shape {tuple(logits.shape)}"
    elif soft and labels.is_floating_point() and labels.shape == logits.shape:
        return
    elif labels.dtype in (torch.int64, torch.uint8) and labels.shape == logits.shape[:1]:
        if not values or labels.device.type != "cpu":
            return  # on a device, to look at the values would be to wait for it
        strange = labels[(labels >= logits.shape[1]) | ((labels < 0) & (labels != IGNORED))]
        if not len(strange):
            return
        came = f"label {int(strange[0])} among {logits.shape[1]} classes"
        remedy = f"number them from 0, and mark those to be ignored by {IGNORED}"
    else:
        came = f"{str(labels.dtype).removeprefix('torch.')} labels of shape {tuple(labels.shape)}"
        if integral(labels) and labels.shape == logits.shape[:1]:
            remedy = "cast them by .long()"
    probabilities = ", or their probabilities (batch, classes)," if soft else ""
    raise ConfigError(
        f"cross-entropy reads int64 classes (batch,){probabilities} and logits (batch, classes), "
        f"got {came}: {remedy}"
    )


def refuse_shape(losses: Any, logits: Tensor, labels: Any, states: int, name: str) -> None:
    """Raises ConfigError: what `name` returned is not one value for each of `states` samples."""
    if isinstance(losses, Tensor) and losses.shape == (states,):
        return
    remedy = "use reduction='none'"
    if not isinstance(losses, Tensor):
        came = type(losses).__name__
    elif losses.dim() == 0:
        came, remedy = "()", f"{remedy} and average each sample's own values alone"
    elif losses.dim() == 1 and len(losses) == size_of(labels):
        came = f"{tuple(losses.shape)} beside internal states of {states} rows"
        remedy = (
            "name a layer whose state begins with the batch, or reorder it by a pool of your own"
        )
    else:
        came = str(tuple(losses.shape))
        if losses.dim() > 1 and isinstance(labels, Tensor) and labels.dim() != logits.dim():
            came += f" of logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        if losses.shape == (states, states):
            remedy = "give logits and labels one shape, which were spread over each other"
        elif losses.dim() > 1 and len(losses) == states:
            remedy += " and then the mean a sample, .flatten(1).mean(1)"
        else:
            remedy += " and the mean over each sample's own values"
    raise ConfigError(
        f"{name} must return one value per sample, shape ({states},), got {came}: {remedy}"
    )


def refuse_log_weights(found: Any, teacher: object, samples: int) -> None:
    """Raises ConfigError: a teacher's answer is not one real number for each sample."""
    real = isinstance(found, Tensor) and found.is_floating_point()
    if real and found.shape == (samples,):
        return
    came, remedy = type(found).__name__, "compute it with torch's own operations"
    if isinstance(found, Tensor):
        came = f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"
        column = found.shape == (samples, 1)
        remedy = "end it with .squeeze(1)" if column else "answer for every row of the snapshot"
    raise ConfigError(
        f"{type(teacher).__name__} must answer with a log weight per sample, shape ({samples},), "
        f"got {came}: {remedy}"
    )


NOTHING = -1e4
"""Log weight of a dropped sample: exp of it is 0 in every precision, and it is finite."""


def log_of(weights: Tensor) -> Tensor:
    """Log weights, `NOTHING` where a weight is 0."""
    return torch.where(weights > 0, weights.clamp(min=1e-30).log(), NOTHING)


def smooth_error(logits: Tensor, labels: Tensor, sharpness: float = 50.0) -> Tensor:
    """mean 2 sigmoid(k (max_j p_j - p_y)) - 1: a smooth 0/1 error, 0 where y is the top class.

    Just below a tie it saturates near 1. It is what the teacher of L2T-loss lowers (Wu et al.,
    NeurIPS 2018).

    Args:
        logits: `(batch, classes)`.
        labels: `(batch,)` int64.
        sharpness: k, 50 as in the authors' code.
    """
    _refuse_unreadable(logits, labels, "validation_loss", soft=False)
    p = logits.softmax(1)
    own = p.gather(1, labels.clamp(min=0).long().unsqueeze(1)).squeeze(1)
    each = 2 * torch.sigmoid(sharpness * (p.amax(1) - own)) - 1
    return mean_counted(each, labels < 0)


VALIDATION_LOSSES: dict[str, ValidationLoss] = {
    "nll": mean_cross_entropy,
    "expected_accuracy": expected_accuracy_loss,
    "smooth_error": smooth_error,
}
"""What a teacher may be taught to lower, by name."""


def validation_loss_of(
    named: str | ValidationLoss | None, sample_loss: SampleLoss
) -> ValidationLoss:
    """The loss of a trusted batch: by name, as given, or the mean of the samples' own loss.

    In that mean, as in torch's, ignored samples do not count.

    Raises:
        ConfigError: an unknown name.
    """
    if named is None:
        if sample_loss is cross_entropy:
            return VALIDATION_LOSSES["nll"]
        return MeanOf(sample_loss)
    return known("validation_loss", named, VALIDATION_LOSSES) if isinstance(named, str) else named


@contextmanager
def trusted_labels_read(why: str, remedy: str) -> Iterator[None]:
    """Say in one line that `loss` fails on trusted labels, `why` it is asked, and the remedy."""
    try:
        yield
    except (DeepTeachError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"`loss` cannot read the trusted labels ({brief(error)}), {why}: {remedy}"
        ) from error


@dataclass(frozen=True)
class MeanOf:
    """The mean of a loss over the samples of a batch, as they count in it."""

    loss: SampleLoss

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        with trusted_labels_read("whose mean is lowered", "give dt.Coach(validation_loss=...)"):
            losses = self.loss(logits, labels)
        mass = mass_of(self.loss, labels)
        if mass is None:
            return mean_counted(losses, ignored(logits, labels, losses))
        return (mass * losses).sum() / mass.sum()

    def share(self, part: Any, whole: Any) -> float | None:
        """How much a part's mean is of that of a batch, by their labels; None: by their sizes."""
        own, of = mass_of(self.loss, part), mass_of(self.loss, whole)
        return None if own is None or of is None else float(own.sum() / of.sum())


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """Score of the given label minus the best score of any other, `(batch,)`."""
    own = scores.gather(1, labels.unsqueeze(1))
    others = scores.scatter(1, labels.unsqueeze(1), -torch.inf)
    return own.squeeze(1) - others.amax(1)
