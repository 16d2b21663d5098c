"""Labels as the trusted probe reads them: one class of several, or several that hold or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepteach.core.batches.ignored import integral
from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError
from deepteach.teachers.class_indices import described


@dataclass(frozen=True, eq=False)
class OneClass:
    """One class a sample: `index` `(batch,)` int64, negative where it is ignored, of `classes`.

    Of probabilities, `soft` `(batch, classes)`, the index is that of the largest. Where the labels
    themselves are indices, they are `given`.
    """

    index: Tensor
    classes: int
    soft: Tensor | None
    given: bool = False


@dataclass(frozen=True, eq=False)
class SeveralLabels:
    """Whether each of several labels was given, `(batch, labels)` bool."""

    given: Tensor


def read_labels(snapshot: Snapshot, reader: str, *, several: bool) -> OneClass | SeveralLabels:
    """The labels by their shapes; their values are not looked at.

    Args:
        snapshot: the batch.
        reader: who reads them, named in the error.
        several: labels `(batch, columns)` of logits `(batch, columns)` hold each by itself; else
            they are the probabilities of one class.

    Raises:
        ConfigError: labels of other shapes.
    """
    labels: Any = snapshot.labels
    shape = tuple(snapshot.logits.shape)
    if isinstance(labels, Tensor) and labels.dim() > 0:
        samples, given = len(labels), tuple(labels.shape)
        if given == (samples,) and len(shape) == 2 and shape[1] > 1 and integral(labels):
            return OneClass(labels.long(), shape[1], None, given=True)
        if {given, shape} <= {(samples,), (samples, 1)}:
            return OneClass((labels.flatten() > 0.5).long(), 2, None)
        if given == shape and len(shape) == 2:
            if several:
                return SeveralLabels(labels > 0.5)
            soft = labels.to(snapshot.logits.dtype)
            return OneClass(soft.argmax(1), shape[1], soft)
    other = "dt.Loss()"
    if isinstance(labels, Tensor) and labels.is_floating_point():
        other = "dt.TrustedRegression()"
    raise ConfigError(
        f"{reader} reads class indices (batch,), and labels 0 and 1 of the shape of the logits, "
        f"got {described(labels)} and logits of shape {shape}: use {other} in its place"
    )


def hold_by_themselves(snapshot: Snapshot, reader: str) -> bool:
    """Whether the labels, by their values, are several; they are looked at.

    Labels `(batch, columns)` are when a sample's do not sum to 1.

    Raises:
        ConfigError: they are neither classes nor labels of two values around 1/2.
    """
    labels: Any = snapshot.labels
    read = read_labels(snapshot, reader, several=False)
    if isinstance(read, OneClass) and read.given:
        return False
    values = labels.double()
    if values.dim() == 2 and values.shape[1] > 1:
        sums = values.sum(1)
        if bool((values >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            return False
    low, high = values.amin(), values.amax()
    two = bool(((values == low) | (values == high)).all())
    if not two or not (low == high or low < 0.5 < high):
        raise ConfigError(
            f"{reader} reads labels of two values, as 0 and 1, got {described(labels)} with more "
            "or others: use dt.TrustedRegression() in its place"
        )
    return values.dim() == 2 and values.shape[1] > 1
