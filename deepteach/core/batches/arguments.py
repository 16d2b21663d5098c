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


def refuse_nested(inputs: Any) -> None:
    """Raises ConfigError: one of the arguments is a nested tensor."""
    args, named = arguments_of(inputs)
    if any(isinstance(item, Tensor) and item.is_nested for item in (*args, *named.values())):
        raise ConfigError(
            "the inputs hold a nested tensor, through which torch has no second derivatives: give "
            "the padded one, torch.nested.to_padded_tensor(x, 0.0), and a mask beside it"
        )


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
