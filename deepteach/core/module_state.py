"""All that a module holds, to be put back: its parts, buffers and caches; its numbers too."""

from __future__ import annotations

import copy
import operator
from collections import deque
from collections.abc import MutableMapping, MutableSequence, MutableSet
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, set, deque)


class ModuleState:
    """What every part of a module refers to, and copies of the tensors that are no parameters.

    A pass may replace buffers, create them, or keep its last batch in an attribute.

    Args:
        module: whose state it is.
        numbers: copy parameters, their gradients and buffers as well.
    """

    def __init__(self, module: nn.Module, *, numbers: bool = False) -> None:
        self._attributes = [(vars(layer), dict(vars(layer))) for layer in module.modules()]
        values = [value for _, kept in self._attributes for value in kept.values()]
        self._containers = [(v, copy.copy(v)) for v in values if isinstance(v, _CONTAINERS)]
        own = [value for value in values if isinstance(value, Tensor)]
        if numbers:
            own += [*module.parameters(), *module.buffers()]
        self._tensors = [(leaf, leaf.detach().clone(), leaf._version) for leaf in own]
        self._numbers = numbers
        self._gradients = [(leaf, leaf.grad) for leaf in module.parameters()] if numbers else []

    @torch.no_grad()
    def restore(self) -> None:
        """Put it back, in place; what was not changed is not written to."""
        for present, kept in self._attributes:
            _refill(present, kept)
        for present, kept in self._containers:
            _refill(present, kept)
        for leaf, kept, version in self._tensors:
            if self._numbers or leaf._version != version:
                leaf.copy_(kept)
        for leaf, gradient in self._gradients:
            leaf.grad = gradient


def _refill(present: Any, kept: Any) -> None:
    """Give a container the items that it had."""
    if isinstance(present, MutableMapping):
        same = present.keys() == kept.keys()
        if not (same and all(map(operator.is_, present.values(), map(kept.get, present)))):
            present.clear()
            present.update(kept)
    elif isinstance(present, MutableSet):
        present.clear()
        present |= kept
    elif isinstance(present, MutableSequence):
        if len(present) != len(kept) or not all(map(operator.is_, present, kept)):
            present.clear()
            present.extend(kept)
