"""Every step rule, under every adjoint that may use it, against independent references."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from cases import CASE, TOLERANCE, Bench, Case, Setting, bench
from oracles import (
    Followed,
    Formula,
    Params,
    adam,
    adamw,
    difference_by,
    directions,
    follow,
    inner,
    off,
    rmsprop,
    sgd,
    size,
    unrolled_by,
)
from paths import ROOT
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import deepteach as dt
from deepteach.core.adjoint.base import Window
from deepteach.core.optim import Rule, State
from deepteach.errors import ConfigError
from deepteach.tree import cosine


def documented() -> Rule:
    """The rule that docs/extending.md gives as an example, as it stands there."""
    page = (ROOT / "docs" / "extending.md").read_text()
    (code,) = (block for block in page.split("```python\n") if "class PlainRMSprop" in block)
    names: dict[str, Any] = {}
    exec(compile(code.split("```")[0], "extending.md", "exec"), names)
    return names["PlainRMSprop"]()


@dataclass(frozen=True, eq=False)
class Way:
    """An optimizer of two parameter groups, its step as written, and how the coach is told."""

    name: str
    kind: Callable[..., torch.optim.Optimizer]
    formula: Formula
    settings: tuple[dict[str, Any], dict[str, Any]]
    reversible: bool = False
    clip: float | None = None
    rule: Rule | None = None
    fast: bool = False

    def __repr__(self) -> str:
        return self.name

    def setting(self, window: int, through: bool) -> Setting:
        rates = (0.4, 0.3) if self.fast else (0.03, 0.02)
        return Setting(window, rates=rates, through_weights=through)

    def bench(self, case: Case, setting: Setting) -> Bench:
        run = bench(case, setting)
        parts = [group["params"] for group in run.optimizer.param_groups]
        pairs = zip(parts, self.settings, strict=True)
        run.optimizer = self.kind([{"params": p, **own} for p, own in pairs], lr=0.1)  # type: ignore
        if self.clip is not None:
            leaves, limit = list(run.module.parameters()), self.clip

            def hook(*_: object) -> None:
                """Runs before the coach's own, as a clipping in the loop does."""
                nn.utils.clip_grad_norm_(leaves, limit)

            run.optimizer.register_step_pre_hook(hook)
        return run

    @property
    def options(self) -> dict[str, Any]:
        return {"clip_norm": self.clip, "rule": self.rule}


SGD = torch.optim.SGD
HEAVY = ({"momentum": 0.9, "weight_decay": 0.01}, {"momentum": 0.6, "weight_decay": 0.05})
LIGHT = ({"weight_decay": 0.01}, {"weight_decay": 0.05})
NESTEROV = ({**HEAVY[0], "nesterov": True}, {**HEAVY[1], "nesterov": True})
BETAS = (
    {"betas": (0.8, 0.95), "weight_decay": 0.1, "eps": 1e-6},
    {"betas": (0.9, 0.99), "weight_decay": 0.02, "eps": 1e-4},
)
WAYS = [
    Way("momentum", SGD, sgd, HEAVY, reversible=True, fast=True),
    Way("plain", SGD, sgd, LIGHT, fast=True),
    Way("nesterov", SGD, sgd, NESTEROV, fast=True),
    Way("adam", torch.optim.Adam, adam, BETAS, reversible=True),
    Way("adamw", torch.optim.AdamW, adamw, BETAS, reversible=True),
    Way("clipped", SGD, sgd, HEAVY, reversible=True, clip=0.3, fast=True),
    Way("clipped-adam", torch.optim.Adam, adam, BETAS, reversible=True, clip=0.3),
    Way(
        "rmsprop",
        torch.optim.RMSprop,
        rmsprop,
        ({"alpha": 0.9}, {"alpha": 0.95}),
        rule=documented(),
    ),
]
GRID = [
    pytest.param(way, window, through, id=f"{way}-{window}-{'through' if through else 'stopped'}")
    for way in WAYS
    for window in (1, 2, 6)
    for through in (False, True)
]
NORM = CASE["batchnorm"]


@cache
def reference(way: Way, window: int, through: bool) -> tuple[Followed, Params]:
    run = way.bench(NORM, way.setting(window, through))
    followed = follow(run, run.coach(dt.Stored(), **way.options))
    return followed, unrolled_by(followed, way.formula, way.clip)


@pytest.mark.parametrize("way, window, through", GRID)
def test_every_adjoint_equals_the_own_unroll(way: Way, window: int, through: bool) -> None:
    _, want = reference(way, window, through)
    assert size(want) > 1e-5
    adjoints = [dt.Stored(), dt.Checkpointed(), dt.Unrolled()]
    for adjoint in [*adjoints, dt.Reversed()] if way.reversible else adjoints:
        run = way.bench(NORM, way.setting(window, through))
        coach = run.coach(adjoint, **way.options)
        run.train(coach)
        got = coach.meta_gradient(*run.valid)
        assert off(got, want) < TOLERANCE["adjoints"], adjoint


@pytest.mark.parametrize("way, window, through", GRID)
def test_the_unroll_equals_finite_differences(way: Way, window: int, through: bool) -> None:
    followed, want = reference(way, window, through)
    for direction in directions(want, 2):
        setting = way.setting(window, through)
        got = difference_by(
            followed, lambda s=setting: way.bench(NORM, s), direction, **way.options
        )
        assert abs(got - inner(want, direction)) < TOLERANCE["differences"] * size(want)


@pytest.mark.parametrize("way", [way for way in WAYS if way.clip])
def test_the_clipping_clips(way: Way) -> None:
    """Or the rows above would test nothing: without it the gradient is another."""
    free = Way("free", way.kind, way.formula, way.settings, fast=way.fast)
    assert off(reference(free, 2, False)[1], reference(way, 2, False)[1]) > 0.01


@pytest.mark.parametrize("way", [way for way in WAYS if not way.reversible])
def test_what_cannot_be_undone_is_refused(way: Way) -> None:
    run = way.bench(NORM, way.setting(2, False))
    with pytest.raises(ConfigError, match="undone.*Stored"):
        run.coach(dt.Reversed(), **way.options)


def test_a_rule_of_the_users_own_is_needed_by_name() -> None:
    run = WAYS[-1].bench(NORM, WAYS[-1].setting(2, False))
    with pytest.raises(ConfigError, match=r"RMSprop.*Coach\(rule=\.\.\.\)"):
        run.coach(dt.Stored())


class Counting(dt.Checkpointed):
    """Notes the most states held at any time of a sweep."""

    most = 0

    def theta_before(self, position: int, later: State, window: Window) -> Params:
        found = super().theta_before(position, later, window)
        kept = sum(step.state is not None for step in window.steps)
        self.most = max(self.most, kept + len(window.memo))
        return found


@pytest.mark.parametrize("way", [WAYS[0], WAYS[4]], ids=str)
def test_whole_training_as_one_window(way: Way) -> None:
    """B = K = 40 steps, every one of the training: Checkpointed == Unrolled, O(sqrt B) states."""
    length = 40
    rates = (0.1, 0.1) if way.fast else (0.01, 0.01)
    setting = Setting(window=length, interval=length, warmup=0, rates=rates)
    found = []
    for adjoint in (dt.Unrolled(), counting := Counting()):
        run = way.bench(NORM, setting)
        coach = run.coach(adjoint)
        run.train(coach)
        assert len(coach.recorder.steps) == length
        found.append(coach.meta_gradient(*run.valid))
    assert off(found[1], found[0]) < TOLERANCE["adjoints"]
    assert counting.most <= 2 * math.ceil(math.sqrt(length)) + 1


def test_checkpointed_resumes_inside_a_window() -> None:
    """The steps before the window, where its first anchor may be, are saved with it."""
    run = bench(NORM, Setting(5, interval=7))
    coach = run.coach(dt.Checkpointed(), interval=20)
    run.train(coach)
    want = coach.meta_gradient(*run.valid)
    saved = coach.state_dict()
    again = run.coach(dt.Checkpointed(), interval=20)
    again.load_state_dict(saved)
    assert off(again.meta_gradient(*run.valid), want) < TOLERANCE["metamorphic"]


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("name", ["mlp", "batchnorm", "layernorm", "embedding"])
def test_finite_differences_are_near(name: str, window: int) -> None:
    found = {}
    for dtype, derivatives in (
        (torch.float64, "exact"),
        (torch.float64, "finite-difference"),
        (torch.float32, "finite-difference"),
    ):
        run = bench(CASE[name], Setting(window), dtype)
        coach = run.coach(dt.Stored(derivatives=derivatives))
        run.train(coach)
        gradient = coach.meta_gradient(*run.valid)
        found[dtype, derivatives] = {n: leaf.double() for n, leaf in gradient.items()}
    exact, double, single = found.values()
    assert off(double, exact) < 1e-5
    assert cosine(single, exact) > 0.999


def test_finite_differences_refuse_moving_weights() -> None:
    run = bench(NORM, Setting(through_weights=True))
    with pytest.raises(ConfigError, match="through_weights.*derivatives='exact'"):
        run.coach(dt.Stored(derivatives="finite-difference"))


@pytest.mark.parametrize("adjoint", [dt.Stored, dt.Reversed])
def test_finite_differences_refuse_long_windows(adjoint: Any) -> None:
    run = bench(NORM, Setting(3))
    with pytest.raises(ConfigError, match="over 3 steps: use window=2 or derivatives='exact'"):
        run.coach(adjoint(derivatives="finite-difference"))


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(8 * 64, 4)


def mixed(half: bool, window: int) -> Params:
    """A small convolutional student, trained in bfloat16 or in float32."""
    torch.manual_seed(0)
    module, g = Small(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    teacher = dt.Teacher([dt.Internal(8 * 64), dt.Label(4, 4), dt.Loss()])
    coach = dt.Coach(
        *(dt.Student(module, "fc"), optimizer, teacher),
        interval=window,
        window=window,
        adjoint=dt.Stored(tolerance=0.1, mixed_precision=half),
    )

    def batch(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(4, (n,), generator=g)
        x = torch.randn(n, 1, 8, 8, generator=g)
        x[torch.arange(n), 0, 2 * (y // 2), 2 * (y % 2)] += 3
        return x, y

    for _ in range(window):
        x, y = batch(16)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = coach.loss(x, y)
        loss.backward()
        optimizer.step()
    return coach.meta_gradient(*batch(32))


@pytest.mark.parametrize("window", [1, 2, 5])
def test_mixed_precision_is_near_full_precision(window: int) -> None:
    assert cosine(mixed(True, window), mixed(False, window)) > 0.9


def test_mixed_precision_is_allowed_by_name_only() -> None:
    run = bench(NORM, Setting())
    for adjoint in (dt.Reversed, dt.Exact):
        with pytest.raises(ConfigError, match="Stored"):
            run.coach(adjoint(tolerance=0.1, mixed_precision=True))
    with pytest.raises(ConfigError, match="tolerance"):
        run.coach(dt.Stored(mixed_precision=True))


class Saving(nn.Module):
    """A body whose activations are recomputed in the backward pass, if asked to."""

    def __init__(self, saving: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 4)
        self.drop, self.saving, self.runs = nn.Dropout(0.2), saving, 0

    def body(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.second(self.drop(self.first(x).tanh())).tanh()

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.body, x, use_reentrant=False) if self.saving else self.body(x)


class Head(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Checkpointed, dt.Unrolled])
def test_activation_checkpointing_changes_nothing(
    adjoint: type[dt.AbstractAdjoint], window: int
) -> None:
    found = []
    for saving in (False, True):
        case = Case("saving", lambda saving=saving: Head(Saving(saving)))
        run = bench(case, Setting(window))
        coach = run.coach(adjoint())
        run.train(coach)
        found.append((coach.meta_gradient(*run.valid), run.module.get_submodule("body")))
    assert off(found[1][0], found[0][0]) < TOLERANCE["metamorphic"]
    assert found[1][1].runs > found[0][1].runs  # training steps did recompute  # type: ignore


def test_frozen_parameters_are_left_out() -> None:
    """No state is kept of them, no gradient computed, and they stay as they are."""
    run = bench(CASE["frozen"], Setting(5))
    frozen = {
        n: p.detach().clone() for n, p in run.module.named_parameters() if not p.requires_grad
    }
    coach = run.coach(dt.Stored())
    run.train(coach)
    assert size(coach.meta_gradient(*run.valid)) > 0
    for step in coach.recorder.steps:
        assert step.state is not None
        for tree in (step.state.theta, step.hyper, *step.state.slots.values()):
            assert tree and not frozen.keys() & tree.keys()
    for name, leaf in run.module.named_parameters():
        assert name not in frozen or (torch.equal(leaf, frozen[name]) and leaf.grad is None)
