"""The same cycle with the libraries that unroll: their last steps as one graph, carried back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    teacher = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid())
    teacher.to(trusted[0].device)

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
