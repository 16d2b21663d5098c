"""The states of a window from copies: of every state, or of some with runs forward."""

from __future__ import annotations

import math

import torch

from deepteach.core.adjoint import guards
from deepteach.core.adjoint.base import (
    AbstractAdjoint,
    MetaGradient,
    Window,
    copy,
    kept,
)
from deepteach.core.adjoint.moved_buffers import MovedBuffers
from deepteach.core.optim import State
from deepteach.tree import Params, tree_map


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
        off = window.memo.get("off")
        guards.check_step(window.rule, held, gradient, step, later.theta, slack, off)
        if "moved" in window.memo:
            window.memo["moved"].off = off
        return held

    def swept(self, window: Window, d_theta: Params, moved: MovedBuffers) -> MetaGradient:
        window.memo["moved"] = moved
        return super().swept(window, d_theta, moved)

    def _stride(self, window: int) -> int:
        return math.isqrt(window - 1) + 1

    def _state(self, position: int, window: Window) -> State:
        """The state before a step; the states between two anchors are found all at once.

        Beside them, how far the last one may be off where gradients are rounding; those before it
        are off by less.
        """
        memo, rule = window.memo, window.rule
        if position not in memo:
            kept_on = {key: memo[key] for key in ("moved",) if key in memo}
            memo.clear()
            memo.update(kept_on)
            anchor = position
            while window.steps[anchor].state is None and anchor > 0:
                anchor -= 1
            state, off = kept(window.steps[anchor]), None
            memo[anchor] = state
            for index in range(anchor, position):
                step = window.steps[index]
                objective, omega = window.objective, window.omega
                pass_ = objective.linearised(state.theta, step, omega, first_order=True)
                guards.compare_losses(pass_.losses, step, self.allowed(state.theta), objective)
                gradient = objective.total(pass_.gradient, "replays")
                held, state = state, rule.step(state, gradient, step.hyper)
                memo[index + 1] = state
                if not rule.linear:
                    more = guards.step_rounding(rule, held, gradient, step, state.theta)
                    off = more if off is None else tree_map(torch.add, off, more)
                    memo["off"] = off
        return memo[position]
