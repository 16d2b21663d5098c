"""The losses of Hugging Face models, one number a sample in the place of one a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from deepteach.core.batches.ignored import integral
from deepteach.core.losses import MassedLoss
from deepteach.errors import ConfigError, DataError
from deepteach.names import first_few


def masked_mean(state: Tensor, inputs: Any) -> Tensor:
    """A state `(batch, tokens, hidden)` averaged over the tokens of `attention_mask`.

    Of any other shape, or without such a mask, as `pool="tokens"` and none would do.
    """
    if state.dim() != 3:
        return state
    mask = inputs.get("attention_mask") if hasattr(inputs, "get") else None
    if mask is None or mask.shape != state.shape[:2]:
        return state.mean(1)
    kept = mask.unsqueeze(2).to(state.dtype)
    return (state * kept).sum(1) / kept.sum(1).clamp(min=1)


def are_tokens(labels: Any) -> bool:
    """Whether there is a class for each token of a sample, and not for each sample."""
    return isinstance(labels, Tensor) and labels.dim() > 1 and integral(labels)


def sample_losses(
    *,
    regression: bool = False,
    smoothing: float = 0.0,
    shifted: bool = False,
    first_counts: bool = False,
) -> MassedLoss:
    """`(logits, labels) -> (batch,)`, whose mean is what a model reports of a batch.

    Classes `(batch,)` and tokens `(batch, tokens)`, of which -100 is left out, have their
    cross-entropy; a sequence's is the mean over its tokens, and it counts as many. Several labels
    `(batch, labels)` of float type have the mean of their binary cross-entropies, a `regression`
    the mean squared error.

    Args:
        regression: the labels are real-valued (a model of one label).
        smoothing: of the labels of a cross-entropy.
        shifted: each token's logits are for the next one (causal language models).
        first_counts: the first label, which no logits are for then, counts in the mean.

    The function raises ConfigError: labels that are none of these; DataError: classes that the
    logits do not have.
    """

    def losses(logits: Tensor, labels: Tensor) -> Tensor:
        if not isinstance(labels, Tensor):
            raise ConfigError(
                f"no loss is known of several columns of labels ({first_few(list(labels))}): give "
                "coach_options={'loss': ...}, a function (logits, labels) -> (batch,), or stack "
                "them into one column of floats (batch, labels)"
            )
        if regression:
            same = labels.to(logits.dtype).reshape(logits.shape)
            return (logits - same).square().flatten(1).mean(1)
        if labels.shape == logits.shape and not integral(labels):
            each = functional.binary_cross_entropy_with_logits(
                logits, labels.to(logits.dtype), reduction="none"
            )
            return each.flatten(1).mean(1)
        if labels.shape != logits.shape[:-1] or not integral(labels):
            raise ConfigError(
                f"no loss is known of labels {tuple(labels.shape)} of type {labels.dtype} for "
                f"logits {tuple(logits.shape)}: give coach_options={{'loss': ...}}, a function "
                "(logits, labels) -> (batch,)"
            )
        given = labels
        if shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        try:
            each = functional.cross_entropy(
                logits.movedim(-1, 1), labels, reduction="none", label_smoothing=smoothing
            )
        except IndexError as error:  # of the CPU; a GPU has its own words
            raise DataError(
                f"labels go from {int(labels.min())} to {int(labels.max())}, and the model has "
                f"{logits.shape[-1]} classes: give it num_labels={int(labels.max()) + 1}, or "
                "correct the labels (-100 is left out)"
            ) from error
        if each.dim() == 1:
            return each
        counts = mass(given)
        assert counts is not None
        return each.flatten(1).sum(1) / counts.clamp(min=1)

    def mass(labels: Any) -> Tensor | None:
        if regression or not are_tokens(labels):
            return None
        counted = labels[:, 1:] if shifted and not first_counts else labels
        return (counted >= 0).flatten(1).sum(1)

    return MassedLoss(losses, mass)
