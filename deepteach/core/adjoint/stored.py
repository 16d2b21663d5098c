"""The states of a window from copies: of every state, or of some with runs forward."""

from __future__ import annotations

import math

from deepteach.core.adjoint import guards
from deepteach.core.adjoint.base import (
    AbstractAdjoint,
    Window,
    copy,
    kept,
)
from deepteach.core.optim import State
from deepteach.tree import Params


class Stored(AbstractAdjoint):
    """Keeps a copy of the state before each step of the window: exact for any rule.

    Memory: B states of parameters and optimizer slots, and the `graphs` asked for. Options as in
    `AbstractAdjoint`.

    Raises:
        ReplayError: in an update: a step did not lead to the state that was reached.
    """

    hands_over = True

    def keep(self, state: State, position: int, window: int) -> State | None:
        return copy(state)

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
        return copy(state) if position % self._stride(window) == 0 else None

    def theta_before(self, position: int, later: State, window: Window) -> Params:
        return self._state(position, window).theta

    def state_before(
        self, position: int, theta: Params, gradient: Params, later: State, window: Window
    ) -> State:
        held = self._state(position, window)
        step, slack = window.steps[position], self.allowed(held.theta)
        guards.check_step(window.rule, held, gradient, step, later.theta, slack)
        return held

    def _stride(self, window: int) -> int:
        return math.isqrt(window - 1) + 1

    def _state(self, position: int, window: Window) -> State:
        """The state before a step; the states between two anchors are found all at once."""
        if position not in window.memo:
            window.memo.clear()
            anchor = position
            while window.steps[anchor].state is None and anchor > 0:
                anchor -= 1
            state = kept(window.steps[anchor])
            window.memo[anchor] = state
            for index in range(anchor, position):
                step = window.steps[index]
                objective, omega = window.objective, window.omega
                pass_ = objective.linearised(state.theta, step, omega, first_order=True)
                guards.compare_losses(pass_.losses, step, self.allowed(state.theta), objective)
                gradient = objective.total(pass_.gradient, "replays")
                state = window.rule.step(state, gradient, step.hyper)
                window.memo[index + 1] = state
        return window.memo[position]
