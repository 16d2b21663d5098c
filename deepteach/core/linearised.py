"""The gradient of one step with its graph, and the derivatives taken from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepteach.errors import ConfigError
from deepteach.tree import Params, dot

if TYPE_CHECKING:
    from deepteach.core.objective import Objective
    from deepteach.core.record import Step


@dataclass
class Linearised:
    """g and its graph at one replayed step."""

    theta: Params
    omega: Params
    weights: Tensor
    gradient: Params
    losses: Tensor
    value: Tensor
    used: frozenset[str]
    """Parameters that the loss depends on; the others have no gradient, as in torch."""

    def pull_back(self, along: Params, objective: Objective, step: Step) -> tuple[Params, Params]:
        """(grad_theta <g, along>, grad_omega <g, along>): one double backward for both."""
        if not objective.linear:
            inner = self._inner(along)
            joint = gradients(inner, {**_prefixed("t", self.theta), **_prefixed("o", self.omega)})
            return _unprefixed("t", joint), _unprefixed("o", joint)
        curvature, slopes = self.products(along)
        return curvature, objective.teacher_gradient(self.omega, step, slopes)

    def pull_back_teacher(self, along: Params, objective: Objective, step: Step) -> Params:
        """grad_omega <g, along> alone."""
        if not objective.linear:
            return gradients(self._inner(along), self.omega)
        return objective.teacher_gradient(self.omega, step, self.slopes(along))

    def products(self, along: Params) -> tuple[Params, Tensor]:
        """(H along, J along) of a linear objective: by parameter, and by sample."""
        joint = gradients(self._inner(along), {**_prefixed("t", self.theta), "u": self.weights})
        slopes = joint.pop("u")
        return _unprefixed("t", joint), slopes

    def slopes(self, along: Params) -> Tensor:
        """J along alone, `(batch,)`."""
        return gradients(self._inner(along), {"u": self.weights})["u"]

    def _inner(self, along: Params) -> Tensor:
        return dot(self.gradient, {name: leaf.detach() for name, leaf in along.items()})


def deliver(graph: Linearised, parameters: Params) -> Tensor:
    """A loss whose backward() gives `parameters` the gradient that `graph` already holds."""
    used = {name: leaf for name, leaf in parameters.items() if name in graph.used}
    found = [graph.gradient[name].detach() for name in used]
    return _Delivery.apply(graph.value, found, *used.values())  # type: ignore[no-any-return]


class _Delivery(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, found: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.found = found
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:  # type: ignore[override]
        # Fresh tensors: the optimizer or a clipping may change what becomes p.grad.
        return None, None, *(leaf * scale for leaf in ctx.found)


def gradients(value: Tensor, leaves: Params, *, create_graph: bool = False) -> Params:
    """Gradients by name; a leaf that `value` does not depend on has gradient 0."""
    if not leaves:
        return {}
    if not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(
        value, list(leaves.values()), create_graph=create_graph, allow_unused=True
    )
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


def _prefixed(mark: str, tree: Params) -> Params:
    return {f"{mark}/{name}": leaf for name, leaf in tree.items()}


def _unprefixed(mark: str, tree: Params) -> Params:
    start = f"{mark}/"
    return {name.removeprefix(start): leaf for name, leaf in tree.items() if name.startswith(start)}


def _refuse_cut(gradient: Sequence[Tensor | None]) -> None:
    """Refuse an operation whose backward pass has no derivative.

    torch marks it by an error node, but `torch.autograd.grad` runs only the nodes on the way
    to its inputs, passes that one by, and is silently wrong.
    """
    todo = [leaf.grad_fn for leaf in gradient if leaf is not None]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise ConfigError(
                "the student cannot be differentiated twice (an autograd.Function marked "
                "once_differentiable): replace that operation by one with a second derivative"
            )
        todo.extend(later for later, _ in node.next_functions)
