"""The share of right predictions, where it is known what a right prediction is.

An accuracy that is no accuracy is worse than none: the columns that a module returns may be an
embedding, levels of an ordinal scale, or probabilities. So the user's own loss is asked how it
reads them, on outputs that favour no class:

    several columns    from equal outputs 1/C the loss must push up the label's own column most;
    one column         at the output 0 the relative slopes (dl/dz) / l of the labels 0 and 1 must be
                       opposite, which holds for losses c_y phi((2y - 1) z) and says that the
                       decision lies at 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepteach.core.batches.ignored import ignored, integral
from deepteach.core.losses import SampleLoss, cross_entropy
from deepteach.rng import generator_states, replayed, same_states

DRAWS = 16
"""Calls over which the slopes of a loss that draws random numbers are averaged."""

_NOISE = 3.0
"""Standard errors within which an average of slopes of both signs is none."""


def told_accuracy(logits: Tensor, labels: Any, loss: SampleLoss) -> float | None:
    """Share of right predictions among the samples that are not ignored; None where unknown.

    Known for class indices `(batch,)` and a loss that reads a column as a class, and for labels 0
    and 1, `(batch,)` or `(batch, 1)`, and a loss of one output that decides at 0. Unknown for
    soft, real-valued and several labels, so for tokens and pixels.

    Args:
        logits: what the module returned, without a graph.
        labels: as given.
        loss: the user's own, `(logits, labels) -> (batch,)`.
    """
    if not isinstance(labels, Tensor) or labels.dim() == 0 or len(logits) != len(labels):
        return None
    columns = logits.numel() // max(len(logits), 1)
    if columns == 1 and labels.numel() == len(labels):
        return _of_one_output(logits, labels, loss)
    if labels.dim() != 1 or logits.dim() != 2 or not integral(labels):
        return None
    kept = labels >= 0
    if bool((labels >= columns).any()) or not bool(kept.any()):
        return None
    if loss is not cross_entropy:
        if not _reads_columns(loss, logits, labels):
            return None
        left_out = ignored(logits, labels, loss(logits, labels))
        if left_out is None or bool((left_out == kept).any()):
            return None  # a negative label that counts is no class
    return float((logits.argmax(1) == labels)[kept].double().mean())


def _of_one_output(logits: Tensor, labels: Tensor, loss: SampleLoss) -> float | None:
    if not bool(((labels == 0) | (labels == 1)).all()):
        return None
    positive = labels.flatten() > 0
    given, slope = slopes_at(loss, torch.zeros_like(logits), labels)
    other, back = slopes_at(loss, torch.zeros_like(logits), labels.logical_not().to(labels.dtype))
    if given is None or other is None or not bool((given > 0).all() and (other > 0).all()):
        return None
    one, two = slope.flatten() / given, back.flatten() / other
    falls = torch.where(positive, -one, one) > 0  # towards the label's own side
    if not (bool(falls.all()) and torch.allclose(one, -two, rtol=1e-3)):
        return None
    return float(((logits.flatten() > 0) == positive).double().mean())


def _reads_columns(loss: SampleLoss, logits: Tensor, labels: Tensor) -> bool:
    """Whether, from equal outputs, the loss pushes each label's own column up more than others."""
    losses, slope = slopes_at(loss, torch.full_like(logits, 1 / logits.shape[1]), labels)
    if losses is None:
        return False
    told = (slope != 0).any(1) & (labels >= 0)
    index = labels.clamp(min=0).long().unsqueeze(1)
    own = -slope.gather(1, index).squeeze(1)
    others = (-slope).scatter(1, index, -torch.inf).amax(1)
    return bool(told.any()) and bool((own > others)[told].all())


def slopes_at(
    loss: SampleLoss, logits: Tensor, labels: Tensor, draws: int = DRAWS
) -> tuple[Tensor | None, Tensor]:
    """Losses and their slopes at other outputs; None where the loss does not take them.

    Where it draws random numbers they are means over so many `draws`: by one call, what dropout
    happens to drop has no slope.
    """
    logits = logits.detach().requires_grad_()
    try:
        with torch.enable_grad(), replayed(None):
            drawn = generator_states(logits.device)
            losses, slope = _called(loss, logits, labels)
            if not same_states(drawn, generator_states(logits.device)):
                losses, slope = _averaged(loss, logits, labels, draws)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None, logits
    if losses.shape != (len(labels),) or not bool(torch.isfinite(slope).all()):
        return None, logits
    return losses, slope


def _called(loss: SampleLoss, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    losses = loss(logits, labels)
    (slope,) = torch.autograd.grad(losses.sum(), logits)
    return losses.detach(), slope


def _averaged(
    loss: SampleLoss, logits: Tensor, labels: Tensor, draws: int
) -> tuple[Tensor, Tensor]:
    """Mean losses and slopes; a slope that noise alone may have made is 0."""
    losses, slope = _called(loss, logits, labels)
    squares, size = slope.square(), slope.abs()
    for _ in range(draws - 1):
        more, next_slope = _called(loss, logits, labels)
        losses, slope = losses + more, slope + next_slope
        squares, size = squares + next_slope.square(), size + next_slope.abs()
    mixed = slope.abs() < (1 - 1e-4) * size  # of both signs, and that is no rounding
    noise = mixed & (slope.abs() < _NOISE * squares.sqrt())
    return losses / draws, torch.where(noise, 0.0, slope / draws)
