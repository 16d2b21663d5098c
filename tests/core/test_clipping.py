"""Clipping of gradients between backward() and the step: what the Coach is told, and what not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from loops import VALID, Loop, assert_exact, coached
from torch import nn
from torch.nn.utils import clip_grad_norm_

import deepteach as dt
from deepteach.core.optim import Clipped, Hyper, MomentumSGD, State
from deepteach.errors import ConfigError


def clipping(norm: float) -> type[Loop]:
    class Clipping(Loop):
        options = {"clip_norm": norm}

        def between(self, i: int) -> None:
            clip_grad_norm_(self.module.parameters(), float(norm))

    return Clipping


@pytest.mark.parametrize("norm", [math.inf, 1e308, 1e30, 0.1, np.float32(0.5), torch.tensor(0.5)])
def test_exact_at_every_norm(norm: float) -> None:
    assert_exact(clipping(norm))


@pytest.mark.parametrize("norm", [math.inf, 1e38])
def test_the_adjoint_of_a_clipping_that_does_nothing_is_that_of_the_step(norm: float) -> None:
    theta = {"w": torch.ones(2)}
    state = State(theta, {"momentum_buffer": {"w": torch.zeros(2)}})
    given = {"w": torch.tensor([1e-3, 0.0])}, {"w": Hyper(0.1, 0.9)}
    plain = MomentumSGD()
    clipped, found = (rule.pull(state, *given, state) for rule in (Clipped(plain, norm), plain))
    assert torch.equal(clipped.gradient["w"], found.gradient["w"])


@pytest.mark.parametrize("norm", [0, 0.0, -1, math.nan, "1", True, torch.ones(2)])
def test_what_is_no_norm_is_refused_when_the_coach_is_made(norm: Any) -> None:
    with pytest.raises(ConfigError, match="clip_norm must be a number above 0, got .*: give None"):
        coached(Loop, 1, clip_norm=norm)


def test_infinity_leaves_the_gradients_watched() -> None:
    loop = coached(clipping(0.1), 1, clip_norm=math.inf)
    with pytest.raises(dt.ConfigError, match="clipping"):
        loop.run(1)


class OfAPart(Loop):
    def between(self, i: int) -> None:
        clip_grad_norm_(self.module.a.parameters(), 0.1)


class ByAnotherNorm(Loop):
    def between(self, i: int) -> None:
        clip_grad_norm_(self.module.parameters(), 0.1, norm_type=1)


class WithOthers(Loop):
    def between(self, i: int) -> None:
        other = nn.Parameter(torch.ones(3))
        other.grad = torch.ones(3)
        clip_grad_norm_([*self.module.parameters(), other], 0.1)


@pytest.mark.parametrize("kind", [OfAPart, ByAnotherNorm, WithOthers])
@pytest.mark.parametrize("window", [1, 3])
def test_clipping_otherwise_than_was_said_is_named(kind: type[Loop], window: int) -> None:
    loop = coached(kind, window, clip_norm=0.1)
    loop.run(window)
    with pytest.raises(dt.ReplayError, match=r"clipping otherwise .* clip_norm=0\.1 of all"):
        loop.coach.meta_gradient(*VALID)


class Replaced(Loop):
    def between(self, i: int) -> None:
        for leaf in self.module.parameters():
            leaf.grad = leaf.grad.clone()


def test_another_tensor_of_equal_values_is_no_change() -> None:
    assert_exact(Replaced)


class ReplacedByOthers(Loop):
    def between(self, i: int) -> None:
        if i == self.changed:
            self.module.a.weight.grad = 1.01 * self.module.a.weight.grad

    changed = 0


@pytest.mark.parametrize("changed", [0, 1, 3])
def test_a_tensor_of_other_values_is_refused(changed: int) -> None:
    kind = type("AtOne", (ReplacedByOthers,), {"changed": changed})
    with pytest.raises(ConfigError, match="'a.weight' was changed between"):
        coached(kind, 1).run(1)
