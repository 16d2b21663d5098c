"""Clipping of gradients between backward() and the step: what the Coach is told, and what not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from loops import Loop, assert_exact, coached
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
