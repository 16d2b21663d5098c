"""What of a student its optimizer trains, and what the optimizer holds of it, by name."""

from __future__ import annotations

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
        named: Params = {}
        for group in self.optimizer.param_groups:
            for leaf in group["params"]:
                if id(leaf) not in self._names:
                    self.learn_names()
                if id(leaf) not in self._names:
                    raise ConfigError(
                        "the optimizer holds a parameter that is not the student's "
                        f"(shape {tuple(leaf.shape)}): give it an optimizer of its own, or, where "
                        "a layer was replaced, make the optimizer and the Coach anew"
                    )
                if leaf.requires_grad:
                    named[self._names[id(leaf)]] = leaf
        return named

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
        names = {id(leaf): name for name, leaf in active.items()}
        found: dict[str, Hyper] = {}
        for group in self.optimizer.param_groups:
            shared = None
            for leaf in group["params"]:
                name = names.get(id(leaf))
                if name is None:
                    continue
                if shared is None or not self.rule.of_groups:
                    shared = self.rule.hyper(group, self.optimizer.state.get(leaf, {}))
                found[name] = shared
        return found

    def watched(self) -> tuple[list[str], list[Tensor]]:
        """What nothing but a step may move, and its names: the parameters, then the slots."""
        theta, state = self.parameters(), self.optimizer.state
        names, leaves = list(theta), list(theta.values())
        for name, leaf in theta.items():
            held = state.get(leaf, {})
            for slot in self.rule.slot_names:
                if isinstance(kept := held.get(slot), Tensor):
                    names.append(f"{slot}/{name}")
                    leaves.append(kept)
        return names, leaves

    def state(self) -> State:
        """References to the parameters and the optimizer's buffers as they are."""
        return read_state(self.optimizer, self.parameters(), self.rule)

    def held(self, named: Params | None = None) -> dict[str, dict[str, Any]]:
        """What the optimizer holds, by parameter."""
        named = self.parameters() if named is None else named
        return {name: self.optimizer.state.get(leaf, {}) for name, leaf in named.items()}
