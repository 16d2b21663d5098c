"""Samples that a loss leaves out: they count nowhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label that torch's cross-entropy leaves out."""


def integral(labels: Tensor) -> bool:
    """Whether they are integers; booleans are not."""
    kind = labels.dtype
    return not (kind.is_floating_point or kind.is_complex or kind == torch.bool)


def ignored(logits: Tensor, labels: Any, losses: Tensor) -> Tensor | None:
    """Which samples of a batch are ignored, `(batch,)`; None where no label can say so.

    A sample is where every label of it is negative, as `ignore_index` is by default in torch,
    and its loss exactly 0. Labels are integers with one dimension less than the logits:
    `(batch,)` classes, or those of tokens or pixels with the classes first or last in the logits.
    In the mean of torch's losses such samples do not count either.
    """
    if not isinstance(labels, Tensor) or labels.dim() == 0 or not integral(labels):
        return None
    if not _columns(logits, labels) > 1:
        return None
    negative = labels < 0
    return (negative if labels.dim() == 1 else negative.flatten(1).all(1)) & (losses == 0)


def _columns(logits: Tensor, labels: Tensor) -> int:
    """How many classes each label has a logit of; 0 where they do not match."""
    if logits.dim() != labels.dim() + 1:
        return 0
    first, last = logits.shape[:1] + logits.shape[2:], logits.shape[:-1]
    return max(
        logits.shape[1] if first == labels.shape else 0,
        logits.shape[-1] if last == labels.shape else 0,
    )


def not_left_out(left_out: Tensor | None, size: int) -> int | Tensor:
    """How many of `size` samples count."""
    return size if left_out is None else (~left_out).sum()


def mean_counted(losses: Tensor, left_out: Tensor | None) -> Tensor:
    """The mean of the losses that count, a scalar; NaN where none does."""
    if left_out is None:
        return losses.mean()
    return torch.where(left_out, 0.0, losses).sum() / not_left_out(left_out, len(losses))
