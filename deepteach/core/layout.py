"""A module's layers, parameters and buffers by name: walked through once, not at every step.

To walk through a deep module takes as long as to weigh a batch. `stands` says at a fraction of
that whether anything was added, replaced, renamed or taken away since.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from deepteach.tree import Params

_KINDS = ("_modules", "_parameters", "_buffers")
"""Where a layer holds what `stands` compares."""


class ModuleLayout:
    """Of a module as it is now."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layers = tuple(module.modules())
        self.parameters: Params = dict(module.named_parameters())
        places: dict[str, tuple[dict, str]] = {}
        for prefix, layer in module.named_modules(remove_duplicate=False):
            for kind in _KINDS[1:]:
                held: dict[str, Tensor | None] = getattr(layer, kind)
                for key, leaf in held.items():
                    if leaf is not None:
                        places[f"{prefix}.{key}" if prefix else key] = held, key
        self._places = places
        self._buffers = [name for name, _ in module.named_buffers()]
        leaves = [held[key] for held, key in places.values()]
        self._tied = len({id(leaf) for leaf in leaves}) < len(leaves)
        dicts = [getattr(layer, kind) for layer in self.layers for kind in _KINDS]
        self._dicts, self._sizes = dicts, list(map(len, dicts))
        self._keys = list(chain.from_iterable(dicts))
        self._values = list(chain.from_iterable(map(dict.values, dicts)))

    def __reduce__(self) -> tuple:
        """Copies and pickles walk through the module that they have: None stands there."""
        return type(None), ()

    def stands(self) -> bool:
        """Whether the module still holds the same layers, parameters and buffers."""
        # Long loops in C alone: this is asked several times a step, of deep modules too.
        if list(map(len, self._dicts)) != self._sizes:
            return False
        held = chain.from_iterable(map(dict.values, self._dicts))
        same = all(map(operator.is_, held, self._values))
        return same and list(chain.from_iterable(self._dicts)) == self._keys

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """As `named_buffers`."""
        for name in self._buffers:
            held, key = self._places[name]
            yield name, held[key]

    def modes(self) -> tuple[bool, ...]:
        """The `training` flag of every layer."""
        return tuple([layer.training for layer in self.layers])

    def call(
        self,
        tensors: Params,
        args: tuple,
        kwargs: dict[str, Any] | None = None,
        function: Callable[..., Any] | None = None,
    ) -> Any:
        """`torch.func.functional_call` without its walks, of the module or of one of its methods.

        What the call leaves in the place of a tensor given is put into `tensors`.
        """
        kwargs, places = kwargs or {}, self._places
        if self._tied or not all(map(places.__contains__, tensors)):
            if function is None:
                return functional_call(self.module, tensors, args, kwargs)
            named = {f"module.{name}": leaf for name, leaf in tensors.items()}
            try:
                return functional_call(_Calling(self.module, function), named, args, kwargs)
            finally:
                tensors.update({name: named[f"module.{name}"] for name in tensors})
        before: list[tuple[str, dict, str, Tensor]] = []
        try:
            for name, leaf in tensors.items():
                held, key = places[name]
                before.append((name, held, key, held[key]))
                held[key] = leaf
            return (self.module if function is None else function)(*args, **kwargs)
        finally:
            for name, held, key, leaf in before:
                tensors[name] = held.get(key, leaf)
                held[key] = leaf


class _Calling(nn.Module):
    """A function of a module as a forward pass, for `functional_call`."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self._function = module, [function]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._function[0](*args, **kwargs)


def layout_of(module: nn.Module, known: ModuleLayout | None) -> ModuleLayout:
    """`known` where it is of this module and stands, else a new one."""
    if known is not None and known.module is module and known.stands():
        return known
    return ModuleLayout(module)


def is_whole(module: nn.Module) -> bool:
    """Whether it has its layers: one that is being copied or loaded gets them last."""
    layers = vars(module).get("_modules")
    return layers is not None and all(is_whole(m) for m in layers.values() if m is not None)
