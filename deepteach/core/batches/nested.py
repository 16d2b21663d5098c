"""Batches that are tensors, tuples or mappings of tensors: their parts and their joins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from deepteach.core.batches.ignored import IGNORED, integral
from deepteach.errors import ConfigError


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same tree of dicts, lists and tuples with `function` of every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, PackedSequence):
        data, sizes, *order = value  # the sizes stay on the CPU, whatever moves the others
        return PackedSequence(
            function(data), sizes, *(None if one is None else function(one) for one in order)
        )
    if isinstance(value, Mapping):
        return {key: mapped(function, item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [mapped(function, item) for item in value]
        kind: Any = type(value)
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    return value


def rows_of(value: Any, rows: slice | Tensor, count: int) -> Any:
    """The rows of every tensor that has one per sample of a batch of `count`."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() > 0 and len(value) == count else value
    if isinstance(value, PackedSequence):
        return _sequences(value, rows) if int(value.batch_sizes[0]) == count else value
    if isinstance(value, Mapping):
        return {key: rows_of(item, rows, count) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(rows_of(item, rows, count) for item in value)
    return value


def _sequences(packed: PackedSequence, rows: slice | Tensor) -> PackedSequence:
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    places = rows.cpu() if isinstance(rows, Tensor) else rows
    return pack_padded_sequence(padded[rows], lengths[places], True, enforce_sorted=False)


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
    return mapped(lambda leaf: leaf.to(device), value)


def plain_inputs(inputs: Any) -> Any:
    """A batch of inputs as a plain tuple or dict of arguments; one argument as it is.

    A tokenizer's batch is a mapping that holds its tokenizer, which no file need hold.
    """
    if isinstance(inputs, PackedSequence):
        return _plain(inputs)
    if isinstance(inputs, Mapping):
        return {key: _plain(item) for key, item in inputs.items()}
    return tuple(map(_plain, inputs)) if isinstance(inputs, tuple | list) else inputs


def given_inputs(plain: Any) -> Any:
    """The inverse of `plain_inputs`."""
    if isinstance(plain, Mapping):
        return _given(plain) or {key: _given(item) or item for key, item in plain.items()}
    if not isinstance(plain, tuple | list):
        return plain
    return tuple(_given(item) or item for item in plain)


def _plain(item: Any) -> Any:
    return {_PACKED: tuple(item)} if isinstance(item, PackedSequence) else item


def _given(item: Any) -> PackedSequence | None:
    if not (isinstance(item, Mapping) and _PACKED in item):
        return None
    data, sizes, *order = item[_PACKED]
    return PackedSequence(data, sizes.cpu(), *order)


_PACKED = "a PackedSequence"
"""How a file calls what it holds as a tuple."""


def in_double(value: Any) -> Any:
    """The same batch with its real numbers in float64."""
    return mapped(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, value)


def without_graph(value: Any) -> Any:
    """The same batch without the graph behind what a net has made of it.

    That still requires a gradient, for a module or a loss that asks for one with respect to its
    inputs; a tensor in several places stays one.
    """
    if all(leaf.grad_fn is None for leaf in _tensors(value)):
        return value
    known: dict[int, Tensor] = {}

    def cut(leaf: Tensor) -> Tensor:
        if leaf.grad_fn is None:
            return leaf
        if id(leaf) not in known:
            known[id(leaf)] = leaf.detach().requires_grad_()
        return known[id(leaf)]

    return mapped(cut, value)


def ordinary(value: Any) -> Any:
    """The same batch; of what was made in inference mode copies, which may have derivatives."""
    if not any(leaf.is_inference() for leaf in _tensors(value)):
        return value
    return mapped(lambda leaf: leaf.clone() if leaf.is_inference() else leaf, value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


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
