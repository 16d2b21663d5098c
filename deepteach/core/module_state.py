"""All that a module holds, to be put back: its parts, buffers and caches; its numbers too."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class ModuleState:
    """What every part of a module refers to, and copies of the tensors that are no parameters.

    A pass may replace buffers, create them, or keep its last batch in an attribute.

    Args:
        module: whose state it is.
        numbers: copy parameters, their gradients and buffers as well.
        layers: its layers, where they are known.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        numbers: bool = False,
        layers: Iterable[nn.Module] | None = None,
    ) -> None:
        self._mappings: list[tuple[Any, dict]] = []
        self._lists: list[tuple[Any, list]] = []
        self._sets: list[tuple[set, set]] = []
        own: list[Tensor] = []
        for layer in module.modules() if layers is None else layers:
            held = vars(layer)
            self._mappings.append((held, dict(held)))
            for value in held.values():
                if isinstance(value, dict):
                    self._mappings.append((value, dict(value) if value else _NOTHING))
                elif isinstance(value, list | deque):
                    self._lists.append((value, list(value)))
                elif isinstance(value, set):
                    self._sets.append((value, set(value)))
                elif isinstance(value, Tensor):
                    own.append(value)
        if numbers:
            own += [*module.parameters(), *module.buffers()]
        self._tensors = [(leaf, leaf.detach().clone(), leaf._version) for leaf in own]
        self._numbers = numbers
        self._gradients = [(leaf, leaf.grad) for leaf in module.parameters()] if numbers else []

    @torch.no_grad()
    def restore(self) -> None:
        """Put it back, in place; what was not changed is not written to."""
        for present, mapping in self._mappings:
            if (present or mapping) and not _same_items(present, mapping):
                present.clear()
                present.update(mapping)
        for present, items in self._lists:
            if len(present) != len(items) or not all(map(operator.is_, present, items)):
                present.clear()
                present.extend(items)
        for present, members in self._sets:
            if present or members:
                present.clear()
                present |= members
        for leaf, copied, version in self._tensors:
            if self._numbers or leaf._version != version:
                leaf.copy_(copied)
        for leaf, gradient in self._gradients:
            leaf.grad = gradient


@contextmanager
def buffers_kept(module: nn.Module, *, statistics_alone: bool = False) -> Iterator[None]:
    """What passes inside write to the module's buffers, or put in their places, is undone.

    Args:
        module: whose.
        statistics_alone: only those of layers that normalise by running statistics.
    """
    layers = [
        layer
        for layer in module.modules()
        if not statistics_alone or isinstance(layer, nn.modules.batchnorm._NormBase)
    ]
    held = [(layer._buffers, dict(layer._buffers)) for layer in layers]
    numbers = [(leaf, leaf.detach().clone()) for layer in layers for leaf in layer.buffers(False)]
    try:
        yield
    finally:
        for present, before in held:
            if not _same_items(present, before):
                present.clear()
                present.update(before)
        with torch.no_grad():
            for leaf, copied in numbers:  # versions do not tell of running statistics
                if not torch.equal(leaf, copied):
                    leaf.copy_(copied)


_NOTHING: dict = {}
"""What an empty mapping held."""


def _same_items(present: Any, kept: dict) -> bool:
    same = present.keys() == kept.keys()
    return same and all(map(operator.is_, present.values(), map(kept.get, present)))
