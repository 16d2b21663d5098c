"""The same cycle with the libraries that unroll, their last steps as one graph carried back.

And Meta-Weight-Net's loop (Shu et al., NeurIPS 2019) by hand, in torch alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Unrolling = tuple[nn.Module, Callable[[Tensor], object]]
"""A copy of the student, and a step on it by a loss that the graph keeps."""


@contextmanager
def _higher(student: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Unrolling]:
    import higher  # pyright: ignore[reportMissingImports]

    with higher.innerloop_ctx(student, optimizer) as (copied, stepper):
        yield copied, stepper.step


@contextmanager
def _torchopt(student: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Unrolling]:
    import torchopt  # pyright: ignore[reportMissingImports]

    copied, group = copy.deepcopy(student), optimizer.param_groups[0]
    settings = {name: group[name] for name in ("lr", "momentum", "weight_decay")}
    yield copied, torchopt.MetaSGD(copied, **settings, moment_requires_grad=True).step


PEERS = {"higher": _higher, "torchopt": _torchopt}
"""Packages that need not be installed."""


def unroll(
    peer: str,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor]],
    trusted: tuple[Tensor, Tensor],
    window: int,
) -> Iterator[None]:
    """Train on `batches`, the last `window` of them as one graph; yields after each step.

    The teacher is the cheapest there is, a function of the loss (whose gradient stops).
    """
    teacher = _weight_net(trusted[0])

    def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(module(x), y, reduction="none")
        weights = teacher(losses.detach().unsqueeze(1)).squeeze(1)
        return (weights * losses).sum() / weights.sum()

    def descend(module: nn.Module) -> None:
        x, y = trusted
        taught = list(teacher.parameters())
        torch.autograd.grad(F.cross_entropy(module(x), y), taught)
        with torch.no_grad():
            for ours, theirs in zip(student.parameters(), module.parameters(), strict=True):
                ours.copy_(theirs)

    for x, y in batches[: len(batches) - window]:
        optimizer.zero_grad()
        loss(student, x, y).backward()
        optimizer.step()
        yield
    *window_but_last, last = batches[len(batches) - window :]
    with PEERS[peer](student, optimizer) as (copied, step):
        for x, y in window_but_last:
            step(loss(copied, x, y))
            yield
        step(loss(copied, *last))
        descend(copied)
    yield


def meta_weight_net(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor]],
    trusted: tuple[Tensor, Tensor],
    teacher: nn.Module | None = None,
) -> Iterator[None]:
    """Train on `batches`, and teach the weights' network before every step; yields after each.

    A virtual SGD step is kept as a graph, the trusted loss behind it is differentiated with
    respect to the network, and the batch is then weighted by the network as it was taught. The
    virtual step reads the batch's statistics and leaves those of the student alone.
    """
    teacher = _weight_net(trusted[0]) if teacher is None else teacher
    taught_by = torch.optim.Adam(teacher.parameters(), lr=1e-3)
    rate: float = optimizer.param_groups[0]["lr"]
    for x, y in batches:
        taught_by.zero_grad()
        theta = {name: leaf.detach().requires_grad_() for name, leaf in student.named_parameters()}
        buffers = {name: leaf.clone() for name, leaf in student.named_buffers()}
        losses = F.cross_entropy(
            functional_call(student, {**theta, **buffers}, (x,)), y, reduction="none"
        )
        value = _weighted(teacher, losses)
        found = torch.autograd.grad(value, list(theta.values()), create_graph=True)
        moved = {n: p - rate * g for (n, p), g in zip(theta.items(), found, strict=True)}
        ahead = functional_call(student, {**moved, **buffers}, (trusted[0],))
        F.cross_entropy(ahead, trusted[1]).backward(inputs=list(teacher.parameters()))
        taught_by.step()
        optimizer.zero_grad()
        with_ = F.cross_entropy(student(x), y, reduction="none")
        _weighted(teacher, with_, taught=False).backward()
        optimizer.step()
        yield


def _weight_net(like: Tensor) -> nn.Module:
    net = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid())
    return net.to(like.device)


def _weighted(teacher: nn.Module, losses: Tensor, *, taught: bool = True) -> Tensor:
    with torch.set_grad_enabled(taught):
        weights = teacher(losses.detach().unsqueeze(1)).squeeze(1)
    return (weights * losses).sum() / weights.sum()
