"""What of a student its optimizer trains, and what the optimizer holds of it, by name."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from deepteach.core.layout import ModuleLayout
from deepteach.core.optim import Hyper, Rule, State, read_state
from deepteach.core.student import Student, refuse_lazy
from deepteach.errors import ConfigError
from deepteach.tree import Params


class Trained:
    """The parameters of a student that an optimizer trains.

    Args:
        student: whose parameters they are.
        optimizer: who trains them.
        rule: how it steps.
    """

    def __init__(self, student: Student, optimizer: torch.optim.Optimizer, rule: Rule) -> None:
        self.student, self.optimizer, self.rule = student, optimizer, rule
        self._layout: ModuleLayout | None = None
        self._names: dict[int, str] = {}
        self._found: _Found | None = None
        self._slots: _Slots | None = None
        self.learn_names()

    def learn_names(self) -> None:
        """Once a step, where a layer or a parameter was replaced since."""
        self.student.shards.settle()
        layout = self.student.layout
        if layout is not self._layout:
            self._layout = layout
            self._names = {id(leaf): name for name, leaf in layout.parameters.items()}

    def parameters(self) -> Params:
        """The student's parameters that the optimizer trains, by name."""
        return dict(self._trained().named)

    def found(self) -> object:
        """What stays the same object as long as the same parameters are trained."""
        return self._trained()

    def _trained(self) -> _Found:
        """The same, found once; the same object until something changes."""
        leaves = [leaf for group in self.optimizer.param_groups for leaf in group["params"]]
        free = [leaf.requires_grad for leaf in leaves]
        known = self._found
        if known is None or not known.stands(self._names, leaves, free):
            named: Params = {}
            for leaf in leaves:
                name = self._name(leaf)
                if leaf.requires_grad:
                    named[name] = leaf
            known = self._found = _Found(self._names, leaves, free, named)
        return known

    def _name(self, leaf: Tensor) -> str:
        if id(leaf) not in self._names:
            self.learn_names()
        if id(leaf) not in self._names:
            raise ConfigError(
                "the optimizer holds a parameter that is not the student's "
                f"(shape {tuple(leaf.shape)}): give it an optimizer of its own, or, where "
                "a layer was replaced, make the optimizer and the Coach anew"
            )
        return self._names[id(leaf)]

    def refuse_strangers(self) -> None:
        """Refuse parameters that something else would have to train, and an optimizer of none."""
        refuse_lazy(self.student.module)
        named = self.parameters()
        if not named:
            raise ConfigError("the optimizer holds no trainable parameter of the student")
        free = {n: p for n, p in self.student.layout.parameters.items() if p.requires_grad}
        others = [name for name in free if name not in named]
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            raise ConfigError(
                f"the optimizer does not train {others[0]!r}{more}: give it all parameters that "
                "require a gradient, or freeze the others with requires_grad_(False)"
            )

    def hyper(self, active: Params) -> dict[str, Hyper]:
        """What a step of `active` would use now, by name."""
        names = dict(zip(map(id, active.values()), active, strict=True))
        found: dict[str, Hyper] = {}
        for group in self.optimizer.param_groups:
            shared, params = None, group["params"]
            for name, leaf in zip(map(names.get, map(id, params)), params, strict=True):
                if name is None:
                    continue
                if shared is None or not self.rule.of_groups:
                    shared = self.rule.hyper(group, self.optimizer.state.get(leaf, {}))
                found[name] = shared
        return found

    def watched(self) -> tuple[list[str], list[Tensor]]:
        """What nothing but a step may move, and its names: the parameters, then the slots."""
        trained, state = self._trained(), self.optimizer.state
        known = self._slots
        if known is None or not known.stands(trained, state):
            known = self._slots = _Slots(trained, state, self.rule.slot_names)
        return known.read()

    def state(self) -> State:
        """References to the parameters and the optimizer's buffers as they are."""
        return read_state(self.optimizer, self.parameters(), self.rule)

    def held(self, named: Params | None = None) -> dict[str, dict[str, Any]]:
        """What the optimizer holds, by parameter."""
        named = self.parameters() if named is None else named
        return {name: self.optimizer.state.get(leaf, {}) for name, leaf in named.items()}


@dataclass(frozen=True, eq=False)
class _Found:
    """The parameters by name, and of what optimizer that was found."""

    names: dict[int, str]
    leaves: list[Tensor]
    free: list[bool]
    named: Params

    def stands(self, names: dict[int, str], leaves: list[Tensor], free: list[bool]) -> bool:
        same = self.names is names and self.free == free and len(self.leaves) == len(leaves)
        return same and all(map(operator.is_, self.leaves, leaves))

    def __reduce__(self) -> tuple:
        """Copies and pickles have other parameters: None stands there."""
        return type(None), ()


class _Slots:
    """Where the optimizer holds what only its steps may move."""

    def __init__(self, trained: _Found, state: Mapping[Tensor, Any], slots: Sequence[str]) -> None:
        self._trained, self._theta = trained, trained.named
        self._keys, self._held = list(state), list(state.values())
        held = {name: state.get(leaf, {}) for name, leaf in self._theta.items()}
        self._parts = [part for part in held.values() for _ in slots]
        self._slots = [slot for _ in held for slot in slots]
        self._slot_names = [f"{slot}/{name}" for name in held for slot in slots]
        self._kinds: list[type] = []
        self._tensors: list[bool] = []
        self._names: list[str] = []

    def __reduce__(self) -> tuple:
        """Copies and pickles have other parameters: None stands there."""
        return type(None), ()

    def stands(self, trained: _Found, state: Mapping[Tensor, Any]) -> bool:
        """Whether the same parameters have the same places in the optimizer."""
        return (
            trained is self._trained
            and len(state) == len(self._keys)
            and all(map(operator.is_, state, self._keys))
            and all(map(operator.is_, state.values(), self._held))
        )

    def read(self) -> tuple[list[str], list[Tensor]]:
        """Names and tensors, the parameters first."""
        found: list[Any] = list(map(dict.get, self._parts, self._slots))
        kinds = list(map(type, found))
        if kinds != self._kinds or not self._names:
            self._kinds, self._tensors = kinds, [issubclass(kind, Tensor) for kind in kinds]
            self._names = [*self._theta, *compress(self._slot_names, self._tensors)]
        return self._names, [*self._theta.values(), *compress(found, self._tensors)]
