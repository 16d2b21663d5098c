"""The arguments that a batch of inputs is, and the tensor that a layer is told by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from deepteach.errors import ConfigError


def arguments_of(inputs: Any) -> tuple[tuple, dict]:
    """What a batch of inputs is passed as: positional and keyword arguments."""
    if isinstance(inputs, PackedSequence):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def first_tensor(value: Any) -> Tensor:
    """The first tensor of a (nested) call or result, such as an LSTM's `(output, state)`."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, dict) else value
    for item in items if isinstance(items, tuple | list) else list(items):
        if isinstance(item, Tensor | tuple | list | dict) and not _is_empty(item):
            return first_tensor(item)
    raise ConfigError("the named submodule passes no tensor: name another one")


def _is_empty(item: Any) -> bool:
    return isinstance(item, tuple | list | dict) and not item
