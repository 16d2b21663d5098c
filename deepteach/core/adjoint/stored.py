"""The states of a window from copies: of every state, or of some with runs forward."""

from __future__ import annotations

import math
from functools import partial

import torch

from deepteach.core.adjoint import guards
from deepteach.core.adjoint.base import (
    AbstractAdjoint,
    MetaGradient,
    Window,
    kept,
)
from deepteach.core.adjoint.moved_buffers import MovedBuffers
from deepteach.core.optim import State
from deepteach.tree import Params, clone, tree_map


class Stored(AbstractAdjoint):
    """Keeps a copy of the state before each step of the window: exact for any rule.

    Memory: B states of parameters and optimizer slots, and the `graphs` asked for. Options as in
    `AbstractAdjoint`.

    Raises:
        ReplayError: in an update: a step did not lead to the state that was reached.
    """

    hands_over = True

    def keep(self, state: State, position: int, window: int) -> State | None:
        return state.mapped(clone)

    def theta_before(self, position: int, later: State, window: Window) -> Params:
        return kept(window.steps[position]).theta

    def state_before(
        self, position: int, theta: Params, gradient: Params, later: State, window: Window
    ) -> State:
        """The stored state; its step must lead to the later state, or something else moved it."""
        held = kept(window.steps[position])
        step, slack = window.steps[position], self.allowed(held.theta)
        guards.check_step(window.rule, held, gradient, step, later.theta, slack)
        return held


class Checkpointed(AbstractAdjoint):
    """Keeps every s-th state, s = ceil(sqrt(B)), and runs forward from it to the others.

    Any rule, any window: about 2 sqrt(B) states in memory, and one more training pass over
    the window. With B = K = a whole short training it is the paper's "all student models on
    the trajectory".

    Raises:
        ReplayError: in an update: a step did not lead to the state that was reached.
    """

    anchored = True

    def spare(self, window: int) -> int:
        return self._stride(window) - 1

    def keep(self, state: State, position: int, window: int) -> State | None:
        return state.mapped(clone) if position % self._stride(window) == 0 else None

    def theta_before(self, position: int, later: State, window: Window) -> Params:
        return self._state(position, window).theta

    def state_before(
        self, position: int, theta: Params, gradient: Params, later: State, window: Window
    ) -> State:
        held = self._state(position, window)
        step, slack = window.steps[position], self.allowed(held.theta)
        off = partial(self._off, position, window)
        guards.check_step(window.rule, held, gradient, step, later.theta, slack, off)
        return held

    def swept(self, window: Window, d_theta: Params, moved: MovedBuffers) -> MetaGradient:
        moved.off = lambda position: self._off(window.start + position, window)
        return super().swept(window, d_theta, moved)

    def _stride(self, window: int) -> int:
        return math.isqrt(window - 1) + 1

    def _state(self, position: int, window: Window) -> State:
        """The state before a step; the states between two anchors are found all at once."""
        memo = window.memo
        if position not in memo:
            memo.clear()
            anchor = _anchor(position, window)
            memo[anchor] = state = kept(window.steps[anchor])
            for index in range(anchor, position):
                gradient = self._gradient(index, state, window)
                state = window.rule.step(state, gradient, window.steps[index].hyper)
                memo[index + 1] = state
        return memo[position]

    def _gradient(self, index: int, state: State, window: Window) -> Params:
        objective, step = window.objective, window.steps[index]
        found = objective.linearised(state.theta, step, window.omega, first_order=True)
        guards.compare_losses(found.losses, step, self.allowed(state.theta), objective)
        return objective.total(found.gradient, "replays")

    def _off(self, position: int, window: Window) -> Params | None:
        """How far theta before a step may be off: by the rounding of all steps from its anchor.

        They are taken once more, so that no sweep holds more than the states.
        """
        off = None
        for index in range(_anchor(position, window), position):
            state, step = self._state(index, window), window.steps[index]
            gradient, reached = self._gradient(index, state, window), window.memo[index + 1].theta
            more = guards.step_rounding(window.rule, state, gradient, step, reached)
            off = more if off is None else tree_map(torch.add, off, more)
        return off


def _anchor(position: int, window: Window) -> int:
    """The step before which the state was kept, at `position` or before it."""
    while window.steps[position].state is None and position > 0:
        position -= 1
    return position
