"""Labels as class indices, for what can read no others."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deepteach.core.batches.ignored import integral
from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError


def class_indices(snapshot: Snapshot, reader: str, instead: str | None = None) -> Tensor:
    """The given labels, `(batch,)` int64, where each is the index of a column of the logits.

    Negative labels are those that losses ignore. To index with them, `clamp(min=0)`: what is
    said of an ignored sample has no weight.

    Args:
        snapshot: the batch.
        reader: who reads them, named in the error.
        instead: what reads these labels, offered in the error; found unless given.

    Raises:
        ConfigError: real-valued, multi-label, soft or per-token labels, or a single logit.
    """
    labels: Any = snapshot.labels
    if not isinstance(labels, Tensor) or labels.dim() != 1 or not integral(labels):
        came = described(labels)
    elif snapshot.logits.dim() != 2 or snapshot.logits.shape[1] < 2:
        came = f"logits of shape {tuple(snapshot.logits.shape)}"
    else:
        return labels.long()  # uint8, which torch reads as classes, would index as a mask
    raise ConfigError(
        f"{reader} reads class indices: expected integer labels of shape (batch,) and logits of "
        f"shape (batch, classes), got {came}: use {instead or readers(snapshot)} in its place"
    )


def log_probability(snapshot: Snapshot, reader: str) -> Tensor:
    """log p_y of the given labels, `(batch,)`. Raises ConfigError as `class_indices`."""
    index = class_indices(snapshot, reader, "dt.SelfPaced(), dt.MetaWeightNet() or dt.Uniform()")
    return snapshot.logits.log_softmax(1).gather(1, index.clamp(min=0).unsqueeze(1)).squeeze(1)


def described(labels: Any) -> str:
    """What labels are, in the words of an error."""
    if not isinstance(labels, Tensor):
        return f"labels of type {type(labels).__name__}"
    return f"{str(labels.dtype).removeprefix('torch.')} labels of shape {tuple(labels.shape)}"


def readers(snapshot: Snapshot) -> str:
    """The features that read labels of these shapes, in the words of an error."""
    labels: Any = snapshot.labels
    if not isinstance(labels, Tensor) or labels.dim() == 0:
        return "dt.Loss()"
    sizes = (len(labels), labels.numel() // max(len(labels), 1))
    if tuple(snapshot.logits.shape) in (sizes, sizes[:1]) and labels.dim() <= 2:
        return (
            "dt.Loss(), dt.TrustedProbe() of labels 0 and 1 or dt.TrustedRegression() of real ones"
        )
    return "dt.Loss() or dt.TrustedRegression()" if labels.is_floating_point() else "dt.Loss()"
