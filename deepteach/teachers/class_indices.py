"""Labels as class indices, for what can read no others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError


def class_indices(snapshot: Snapshot, reader: str, instead: str = "dt.Loss()") -> Tensor:
    """The given labels, `(batch,)`, where each is the index of a column of the logits.

    Args:
        snapshot: the batch.
        reader: who reads them, named in the error.
        instead: what reads any labels, offered in the error.

    Raises:
        ConfigError: real-valued, multi-label, soft or per-token labels, or a single logit.
    """
    labels: Any = snapshot.labels
    if not isinstance(labels, Tensor):
        came = f"labels of type {type(labels).__name__}"
    elif labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        came = f"{str(labels.dtype).removeprefix('torch.')} labels of shape {tuple(labels.shape)}"
    elif snapshot.logits.dim() != 2 or snapshot.logits.shape[1] < 2:
        came = f"logits of shape {tuple(snapshot.logits.shape)}"
    else:
        return labels
    raise ConfigError(
        f"{reader} reads class indices: expected integer labels of shape (batch,) and logits of "
        f"shape (batch, classes), got {came}: use {instead} in its place"
    )
