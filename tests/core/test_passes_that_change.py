"""Passes that change their module: looking, weighing and differentiating put everything back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from by_label import ByLabel, X, Y
from coach_loop import flat, same
from torch import Tensor, nn

import deepteach as dt


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.a(x).tanh())


class Caching(Plain):
    """Keeps its last batch, counts its calls, and remembers in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.calls, self.log, self.table = None, 0, [0], {"x": 0}
        self.mean = torch.zeros(8, dtype=torch.float64)  # a tensor that is no buffer

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        self.last, self.calls = h, self.calls + 1
        self.log.append(len(x))
        self.table["x"] = self.calls
        with torch.no_grad():
            self.mean.mul_(0.5).add_(h.mean(0))
        return self.fc(h)


class Replacing(Plain):
    """Buffers that are replaced, made, and not saved."""

    seen: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("made", None)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        self.count += 1
        if self.made is None or len(self.made) != len(x):
            self.made = torch.ones(len(x), 1)
        return super().forward(x * self.made)


class Spectral(Plain):
    """The old form: u moves, and the weight is an attribute made in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.spectral_norm(self.a)


class WeightNorm(Plain):
    def __init__(self) -> None:
        super().__init__()
        with pytest.warns(FutureWarning, match="deprecated"):
            self.a = nn.utils.weight_norm(self.a)


class Drawing(Plain):
    """Draws from all generators; Python's and NumPy's move nothing that it answers."""

    def forward(self, x: Tensor) -> Tensor:
        random.random()
        np.random.rand()
        return super().forward(nn.functional.dropout(x, 0.1, self.training))


class Norms(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))  # type: ignore[assignment]


class MaxNorm(Plain):
    """Rows of an embedding are shortened when they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(10, 6, max_norm=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.rows(torch.arange(len(x)) % 10))


class Dividing(Plain):
    """Its weight is normalised in place, past autograd."""

    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data.div_(self.a.weight.data.norm())
        return super().forward(x)


class DividingInTraining(Plain):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.a.weight.div_(self.a.weight.norm())
        return super().forward(x)


EXACT = [Plain, Caching, Replacing, WeightNorm, Drawing, Norms]
REFUSED = [MaxNorm, Dividing, DividingInTraining]
ONE_STEP = [Spectral]  # u moves


def loop(kind: type[Plain], window: int, steps: int = 3) -> Any:
    torch.manual_seed(0)
    module = kind().double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    coach = dt.Coach(dt.Student(module, "fc"), optimizer, ByLabel(), interval=3, window=window)
    for i in range(steps):
        optimizer.zero_grad()
        coach.loss(X[20 * i : 20 * i + 20], Y[20 * i : 20 * i + 20]).backward()
        optimizer.step()
    return module, optimizer, coach


def everything(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Numbers, and every attribute of every layer by identity."""
    held = [
        (name, key, id(value), flat(value) if isinstance(value, Tensor | list | dict) else value)
        for name, layer in module.named_modules()
        for key, value in vars(layer).items()
        if key not in ("_modules", "_parameters", "_buffers") and "hook" not in key
    ]
    buffers = [(name, leaf, id(leaf)) for name, leaf in module.named_buffers()]
    parameters = [(name, leaf, leaf.grad) for name, leaf in module.named_parameters()]
    arrays: Any = np.random.get_state()
    drawn = [torch.get_rng_state(), random.getstate(), arrays[1].tolist(), arrays[2]]
    return flat([held, buffers, parameters, optimizer.state_dict(), drawn])


@pytest.mark.parametrize(
    "kind, steps",
    [*((k, 0) for k in REFUSED), *((k, n) for k in (*EXACT, *ONE_STEP) for n in (0, 3))],
)
def test_looking_changes_nothing(kind: type[Plain], steps: int) -> None:
    module, optimizer, coach = loop(kind, 1, steps)
    for train in (True, False):
        module.train(train)
        before = everything(module, optimizer)
        first = coach.weights(X[100:], Y[100:])
        coach.look(X[90:], Y[90:])
        assert same(everything(module, optimizer), before)
        assert torch.equal(coach.weights(X[100:], Y[100:]), first)


@pytest.mark.parametrize(
    "kind, window", [*((k, w) for k in EXACT for w in (1, 2)), *((k, 1) for k in ONE_STEP)]
)
def test_teaching_changes_the_teacher_only(kind: type[Plain], window: int) -> None:
    module, optimizer, coach = loop(kind, window)
    before, teacher = everything(module, optimizer), flat(coach.teacher.state_dict())
    if kind is Spectral:
        module.eval()  # u moves where the validation loss is computed, too
        before = everything(module, optimizer)
    first = coach.meta_gradient(X[100:], Y[100:])
    assert same(everything(module, optimizer), before)
    assert same(flat(coach.teacher.state_dict()), teacher)
    assert same(flat(coach.meta_gradient(X[100:], Y[100:])), flat(first))
    assert coach.update((X[100:], Y[100:])) is not None
    assert same(everything(module, optimizer), before)
    assert not same(flat(coach.teacher.state_dict()), teacher)


@pytest.mark.parametrize(
    "kind, window", [*((k, w) for k in REFUSED for w in (1, 2)), (Spectral, 2)]
)
def test_what_cannot_be_exact_is_refused_and_changes_nothing(
    kind: type[Plain], window: int
) -> None:
    with pytest.raises(dt.DeepTeachError, match="writes to its|window=1") as caught:
        module, optimizer, coach = loop(kind, window)
        module.eval()
        before = everything(module, optimizer)
        try:
            coach.meta_gradient(X[100:], Y[100:])
        finally:
            assert same(everything(module, optimizer), before)
    assert "\n" not in str(caught.value)


def test_lazy_layers_are_told_to_see_a_batch_first() -> None:
    module = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(dt.ConfigError, match=r"lazy layers.*module\(x\)"):
        dt.Coach(dt.Student(module, "2"), optimizer, ByLabel())
    module(X[:2])
    coach = dt.Coach(dt.Student(module, "2"), optimizer, ByLabel(), interval=1, window=1)
    coach.loss(X[:20], Y[:20]).backward()
    optimizer.step()
    assert coach.update((X[100:], Y[100:])) is not None


@pytest.mark.parametrize("kind", [Replacing, Norms])
def test_a_loss_that_is_dropped_takes_its_buffers_back(kind: type[Plain]) -> None:
    module, optimizer, coach = loop(kind, 1)
    optimizer.zero_grad()
    before = flat(dict(module.named_buffers()))
    coach.loss(X[:7], Y[:7]).backward()
    coach.discard()
    assert same(flat(dict(module.named_buffers())), before)
