"""Hooks of a parameter see its gradient before the optimizer does: they may read, not change.

A hook of ours stands before those of others and one behind them; the bits must be the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepteach.shards import any_shard, is_shard, over_ranks, own
from deepteach.tree import Params


class ParameterHooks:
    """Watches the hooks of others on the parameters of one optimizer."""

    def __init__(self) -> None:
        self._handles: dict[str, list[Any]] = {}
        self._arrived: dict[str, Tensor] = {}
        self._flags: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._split: list[Tensor] = []

    def arrange(self, parameters: Params) -> None:
        """Before a batch: stand around the hooks that are there now."""
        self._flags.clear()
        split = any_shard(parameters.values())
        self._split = [leaf for leaf in parameters.values() if is_shard(leaf)][:1] if split else []
        self._versions = {name: leaf._version for name, leaf in parameters.items()}
        for name, leaf in parameters.items():
            hooks: Any = leaf._backward_hooks
            if not hooks:
                continue
            own = [handle.id for handle in self._handles.get(name, ())]
            keys = list(hooks)
            if len(keys) > 2 and [keys[0], keys[-1]] == own:
                continue
            self._remove(name)
            if set(keys) - set(own):
                before = leaf.register_hook(lambda g, name=name: self._before(name, g))
                put_first(hooks, before.id)
                after = leaf.register_hook(lambda g, name=name: self._after(name, g))
                self._handles[name] = [before, after]

    def _before(self, name: str, gradient: Tensor) -> None:
        self._arrived[name] = gradient.detach().clone()

    def _after(self, name: str, gradient: Tensor) -> None:
        arrived = self._arrived.pop(name, None)
        if arrived is not None:
            same = arrived.shape == gradient.shape and arrived.dtype == gradient.dtype
            flag = (
                (own(arrived) != own(gradient)).any() if same else torch.ones((), dtype=torch.bool)
            )
            self._flags[name] = self._flags[name] | flag if name in self._flags else flag

    def changed(self) -> str | None:
        """A parameter whose gradient was changed since `arrange`."""
        names = list(self._flags)
        if not names:
            return None
        flags = torch.stack([self._flags[name].to(self._flags[names[0]]) for name in names])
        flags = over_ranks(flags.int(), self._split).tolist()
        return next((n for n, flag in zip(names, flags, strict=True) if flag), None)

    def written(self, parameters: Params) -> str | None:
        """A parameter that itself was written to since `arrange`."""
        known = self._versions
        return next((n for n, p in parameters.items() if p._version != known.get(n)), None)

    def _remove(self, name: str) -> None:
        for handle in self._handles.pop(name, ()):
            handle.remove()

    def remove(self) -> None:
        """Take ours away."""
        for name in list(self._handles):
            self._remove(name)


def put_first(hooks: Any, key: int) -> None:
    """Let one of several hooks be called before the others.

    torch calls them in the order in which they came, whatever `move_to_end` says.
    """
    if next(iter(hooks)) != key:
        own, others = hooks.pop(key), list(hooks.items())
        hooks.clear()
        hooks[key] = own
        hooks.update(others)
