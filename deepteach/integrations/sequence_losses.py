"""The losses of Hugging Face models, one number a sample in the place of one a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepteach.core.ignored import integral
from deepteach.core.logits import logits_of
from deepteach.core.predict import evaluating
from deepteach.errors import ConfigError, DataError
from deepteach.names import first_few
from deepteach.rng import untouched


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


def sample_losses(
    *, regression: bool = False, smoothing: float = 0.0, shifted: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """`(logits, labels) -> (batch,)`, whose mean is what a model reports of samples alike long.

    Classes `(batch,)` and tokens `(batch, tokens)`, of which -100 is left out, have their
    cross-entropy, a sequence's is the mean over its tokens; several labels `(batch, labels)`
    of float type the mean of their binary cross-entropies; a `regression` the mean squared error.

    Args:
        regression: the labels are real-valued (a model of one label).
        smoothing: of the labels of a cross-entropy.
        shifted: each token's logits are for the next one (causal language models).

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
        each, counts = each.flatten(1), (labels >= 0).flatten(1)
        return each.sum(1) / counts.sum(1).clamp(min=1)

    return losses


def refuse_another_loss(
    module: nn.Module,
    inputs: Mapping[str, Any],
    labels: Tensor,
    losses: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Raises ConfigError: the loss that the module itself returns is not the mean of `losses`.

    A module that weighs classes, or adds terms, would else be trained on something else than it
    asks for. `inputs` are a batch with its labels; one without a loss in what it returns passes.
    """
    with evaluating(module), untouched():
        outputs = module(**inputs)
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if not isinstance(found, Tensor) or found.numel() != 1:
        return
    logits = logits_of(outputs)
    each = losses(logits.float(), labels)
    counts = torch.ones_like(each)
    if labels.dim() > 1 and integral(labels) and labels.shape == logits.shape[:-1]:
        counts = (labels >= 0).flatten(1).sum(1)
    own, expected = float(found), float((each * counts).sum() / counts.sum().clamp(min=1))
    if not math.isclose(own, expected, rel_tol=1e-2, abs_tol=1e-3):
        raise ConfigError(
            f"{type(module).__name__} has a loss of its own ({own:.4g} for a batch whose labels "
            f"have a mean loss of {expected:.4g}), which gives one number for a batch: give "
            "coach_options={'loss': ...}, a function (logits, labels) -> (batch,)"
        )
