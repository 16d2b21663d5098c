"""Numbers that a loop gives with its samples: which they are, and which source they come from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepteach.data.memory import available
from deepteach.errors import ConfigError

INDEX_BOUND = 2**31
"""Above it an index names a sample, but does not number it."""


def numbered(value: Any, name: str, count: int) -> Tensor | None:
    """`index` or `group` as int64: of bytes torch would read it as a mask.

    Raises:
        ConfigError: no whole number for each of `count` samples.
    """
    if value is None:
        return None
    said = f"is of type {type(value).__name__}"
    if isinstance(value, Tensor):
        whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        if value.shape == (count,) and whole:
            return value.long()
        said = f"has shape {tuple(value.shape)} and dtype {value.dtype}"
    raise ConfigError(f"{name} {said}: expected int64, one for each of {count} samples")


def index_of(value: Any, count: int) -> Tensor | None:
    """`index` as int64.

    Raises:
        ConfigError: as `numbered`; or it does not number samples from 0. On a device that is found
            later, by what remembers samples.
    """
    found = numbered(value, "index", count)
    if found is not None and found.device.type == "cpu":
        _refuse_beyond(found)
    return found


def widened(labels: Any) -> Any:
    """Labels `(batch,)` of bytes as int64, so that no teacher indexes by them as by a mask."""
    bytes_ = isinstance(labels, Tensor) and labels.dim() == 1 and labels.dtype == torch.uint8
    return labels.long() if bytes_ else labels


def _refuse_beyond(index: Tensor) -> int:
    """The largest index, -1 of none. Raises ConfigError where they do not number samples from 0."""
    least, most = (int(index.min()), int(index.max())) if len(index) else (0, -1)
    if least < 0 or most >= INDEX_BOUND:
        raise ConfigError(f"an index is {least if least < 0 else most}: number the samples from 0")
    return most


def refuse_unnumbered(index: Tensor, room: int, size: int) -> None:
    """Raise ConfigError where indices do not number samples from 0, or memory by them is too much.

    Args:
        index: `(batch,)` int64.
        room: the samples that there is memory for.
        size: bytes a sample.
    """
    most = _refuse_beyond(index)
    if most >= 2 * max(room, 2**20) and most * size > available():
        raise ConfigError(
            f"an index is {most}, and what is remembered up to it would take "
            f"{most * size / 2**30:.0f} GiB: number the samples from 0"
        )
