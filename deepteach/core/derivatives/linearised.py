"""The gradient of one step with its graph, and the derivatives taken from it.

Where the features are held, L = sum_k u_k l_k(z_k; omega) depends on theta through the
logits z alone, and the teacher's part of <g, dv> is that of the small function

    d/domega sum_k u_k <dl_k/dz, dz_k>,    dz = J_z dv.

A teacher that only weighs needs less of dz: the slopes <dl_k/dz, dz_k> of the losses.
Both are called `moved` here: how a direction of theta moves the batch. They come without
another pass, as derivatives of <g, dv> with respect to a leaf: u for the slopes, and for dz
a zero added to the cotangent of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepteach.distributed.fully_sharded import Unsplit
from deepteach.errors import ConfigError, ReplayError
from deepteach.tree import Params, dot


@dataclass
class Linearised:
    """g and its graph at one replayed step.

    `leaf` is what the derivative of <g, dv> is `moved` with respect to; `respond` turns
    `moved` into the teacher's gradient, or is None where theta moves the features as well
    and theta and omega are differentiated together.
    """

    theta: Params
    omega: Params
    leaf: Tensor
    gradient: Params
    losses: Tensor
    logits: Tensor
    value: Tensor
    used: frozenset[str]
    """Parameters that the loss depends on; the others have no gradient, as in torch."""
    respond: Callable[[Tensor], Params] | None

    def pull_back(self, along: Params) -> tuple[Params, Params]:
        """(grad_theta <g, along>, grad_omega <g, along>): one double backward for both."""
        if self.respond is None:
            inner = self._inner(along)
            joint = gradients(inner, {**_prefixed("t", self.theta), **_prefixed("o", self.omega)})
            return _unprefixed("t", joint), _unprefixed("o", joint)
        curvature, moved = self.products(along)
        return curvature, self.respond(moved)

    def pull_back_teacher(self, along: Params) -> Params:
        """grad_omega <g, along> alone."""
        if self.respond is None:
            return gradients(self._inner(along), self.omega)
        return self.respond(self.moved(along))

    def products(self, along: Params) -> tuple[Params, Tensor]:
        """(H along, how `along` moves the batch) where the features are held."""
        joint = gradients(self._inner(along), {**_prefixed("t", self.theta), "leaf": self.leaf})
        moved = joint.pop("leaf")
        return _unprefixed("t", joint), moved

    def moved(self, along: Params) -> Tensor:
        """How `along` moves the batch, alone."""
        return gradients(self._inner(along), {"leaf": self.leaf})["leaf"]

    def _inner(self, along: Params) -> Tensor:
        return dot(self.gradient, {name: leaf.detach() for name, leaf in along.items()})


def deliver(graph: Linearised, parameters: Params, shards: Unsplit) -> Tensor:
    """A loss whose backward() gives `parameters` the gradient that `graph` already holds.

    Of parameters that are split, their `shards` the sum over ranks, as from any other pass.
    """
    if shards.split:
        own = {n: graph.gradient[n].detach() if n in graph.used else None for n in parameters}
        return _SplitDelivery.apply(graph.value, shards, own, *parameters.values())  # type: ignore[no-any-return]
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


class _SplitDelivery(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, shards: Unsplit, own: Any, *leaves: Tensor) -> Tensor:
        ctx.shards, ctx.own = shards, own
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:  # type: ignore[override]
        given = {n: None if leaf is None else leaf * scale for n, leaf in ctx.own.items()}
        return None, None, None, *ctx.shards.reached(given, "gradient").values()


def gradients(
    value: Tensor,
    leaves: Params,
    cotangent: Tensor | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> Params:
    """Gradients by name; a leaf that `value` does not depend on has gradient 0."""
    if not leaves:
        return {}
    if not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    with derivatives_known():
        found = torch.autograd.grad(
            value,
            list(leaves.values()),
            cotangent,
            retain_graph=retain_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


@contextmanager
def derivatives_known() -> Iterator[None]:
    """Say in one line where torch has no derivative of an operation, or no graph any more."""
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if _USED_UP in said:
            raise ReplayError(
                "something besides coach.loss ran backwards through the student's pass (a loss of "
                "its features or logits?): an added loss term belongs into Coach(loss=...), and "
                "what is only measured needs retain_graph=True"
            ) from None
        if _TO_NUMPY in said:
            raise ConfigError(
                "something takes a gradient of the student to NumPy on its way back (a backward "
                "hook?), where a meta-gradient has a graph: let it take gradient.detach().numpy()"
            ) from None
        if not any(part in said.lower() for part in _UNKNOWN):
            raise
        raise ConfigError(
            f"the student or its loss cannot be differentiated twice: torch says {said!r}; "
            "replace that operation by one with a second derivative"
        ) from None


_USED_UP = "backward through the graph a second time"
"""What torch says of a graph that a backward() has been through."""

_TO_NUMPY = "Can't call numpy() on Tensor that requires grad"

_UNKNOWN = (
    "not implemented",
    "don't support automatic differentiation",
    "double backward",
    "higher-order",
    "differentiable twice",
    "once_differentiable",
)


def _prefixed(mark: str, tree: Params) -> Params:
    return {f"{mark}/{name}": leaf for name, leaf in tree.items()}


def _unprefixed(mark: str, tree: Params) -> Params:
    start = f"{mark}/"
    return {name.removeprefix(start): leaf for name, leaf in tree.items() if name.startswith(start)}


def refuse_cut(gradient: Sequence[Tensor | None]) -> None:
    """Refuse an operation whose backward pass has no derivative.

    torch marks it by an error node, but `torch.autograd.grad` runs only the nodes on the way
    to its inputs, passes that one by, and is silently wrong.
    """
    for node in _graph(leaf for leaf in gradient if leaf is not None):
        if node.name() == "torch::autograd::Error":
            raise ConfigError(
                "the student cannot be differentiated twice (an autograd.Function marked "
                "once_differentiable): replace that operation by one with a second derivative"
            )


def is_of_alone(value: Tensor, theta: Params) -> bool:
    """Whether `theta`, whose graph leads on, is all that the gradient of `value` goes to."""
    ends = {leaf.grad_fn for leaf in theta.values()}
    return all(node.name() != _LEAF for node in _graph([value], ends))


def leads_to(value: Tensor, leaves: Params) -> str | None:
    """The name of one of `leaves` that the gradient of `value` goes to."""
    known = {id(leaf): name for name, leaf in leaves.items()}
    ends = (node.variable for node in _graph([value]) if node.name() == _LEAF)
    return next((known[id(leaf)] for leaf in ends if id(leaf) in known), None)


_LEAF = "torch::autograd::AccumulateGrad"
"""A node of a graph where a gradient is left in a tensor."""


def _graph(tensors: Iterable[Tensor], ends: Iterable[Any] = ()) -> Iterator[Any]:
    """The nodes of a graph, each once, but for `ends` and what is behind them."""
    todo: list[Any] = [leaf.grad_fn for leaf in tensors]
    seen: set[Any] = {None, *ends}
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            todo.extend(later for later, _ in node.next_functions)
