"""Batches that are tensors, tuples or mappings of tensors: their parts and their joins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepteach.core.ignored import IGNORED, integral
from deepteach.errors import ConfigError


def rows_of(value: Any, rows: slice | Tensor, count: int) -> Any:
    """The rows of every tensor that has one per sample of a batch of `count`."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() > 0 and len(value) == count else value
    if isinstance(value, Mapping):
        return {key: rows_of(item, rows, count) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(rows_of(item, rows, count) for item in value)
    return value


def joined_batch(parts: Sequence[Any]) -> Any:
    """Parts as one batch: tensors one after the other, what else as in the first.

    Sequences of several lengths are filled up: whole numbers by `IGNORED`, others by 0.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(filled(parts)) if first.dim() > 0 else first
    if isinstance(first, Mapping):
        return {key: joined_batch([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(joined_batch(items) for items in zip(*parts, strict=True))
    return first


def filled(parts: Sequence[Tensor]) -> list[Tensor]:
    """The parts, each at the end of its axes filled up to the longest of them."""
    shapes = [part.shape[1:] for part in parts]
    if len(set(shapes)) == 1 or len(set(map(len, shapes))) > 1:
        return list(parts)
    longest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    found = []
    for part, shape in zip(parts, shapes, strict=True):
        pairs = [(0, most - own) for most, own in zip(longest, shape, strict=True)]
        room = [size for pair in reversed(pairs) for size in pair]
        found.append(nn.functional.pad(part, room, value=IGNORED if integral(part) else 0))
    return found


def moved(value: Any, device: torch.device) -> Any:
    """The same tree of dicts, lists and tuples with its tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [moved(item, device) for item in value]
        kind: Any = type(value)
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    return value


def plain_inputs(inputs: Any) -> Any:
    """A batch of inputs as a plain tuple or dict of arguments; one argument as it is.

    A tokenizer's batch is a mapping that holds its tokenizer, which no file need hold.
    """
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return tuple(inputs) if isinstance(inputs, tuple | list) else inputs


def in_double(value: Any) -> Any:
    """The same batch with its real numbers in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: in_double(item) for key, item in value.items()}
    return tuple(map(in_double, value)) if isinstance(value, tuple | list) else value


def size_of(labels: Any) -> int:
    """How many samples the labels of a batch are for: the length of their first tensor."""
    while not isinstance(labels, Tensor):
        labels = next(iter(labels.values() if isinstance(labels, Mapping) else labels))
    return len(labels)


def device_of_batch(value: Any) -> torch.device:
    """Where the first tensor of a batch is."""
    whole = value
    while not isinstance(value, Tensor):
        if not (isinstance(value, Mapping | tuple | list) and len(value)):
            raise ConfigError(
                f"labels are of type {type(whole).__name__}: expected a tensor, or a tuple or "
                "mapping of tensors, e.g. torch.as_tensor(y)"
            )
        value = next(iter(value.values() if isinstance(value, Mapping) else value))
    return value.device
