"""The states of a window by undoing its steps (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepteach.core.adjoint import guards
from deepteach.core.adjoint.base import AbstractAdjoint, Window
from deepteach.core.optim import Hyper, Rule, State, longest_reversal
from deepteach.errors import ConfigError, ReplayError
from deepteach.tree import Params, clone, distance


class Reversed(AbstractAdjoint):
    """Algorithm 1: undo the optimizer's steps from the last state. No memory per step.

    Fan et al., arXiv 2007.04649, with the corrections of docs/paper.md; options as in
    `AbstractAdjoint`.

    Undoing a step divides the momentum by mu, which grows rounding errors; a window too
    long for momentum and precision is refused, and a copy of the state that opens the
    window is compared with its reconstruction: a relative `tolerance` is enforced.

    Raises:
        ConfigError: when the Coach is made: a step that cannot be undone (momentum 0,
            Nesterov), or too long a window.
        ReplayError: in an update: the recovered states are not the true ones.
    """

    undoes = True

    def check(self, rule: Rule, hyper: Sequence[Hyper], window: int, dtype: torch.dtype) -> None:
        super().check(rule, hyper, window, dtype)
        if torch.finfo(dtype).eps > 1e-4:
            raise ConfigError(
                f"undoing steps in {dtype} loses the states: keep the parameters in float32, or "
                "use adjoint=Stored()"
            )
        for h in hyper:
            reason = rule.refuse_reversal(h)
            if reason:
                raise ConfigError(f"{reason}: use adjoint=Stored()")
            longest = longest_reversal(rule.memory(h), dtype, self.tolerance)
            if window > longest:
                raise ConfigError(
                    f"undoing {window} steps at momentum {rule.memory(h)} in {dtype} would lose "
                    f"the states (at most {longest} stay within {self.tolerance}): "
                    "use a shorter window, adjoint=Stored() or adjoint=Checkpointed()"
                )

    def keep(self, state: State, position: int, window: int) -> State | None:
        """The sentinel, and the start of the last step.

        That step may hand its training pass to the sweep; a resumed run, which cannot, must
        replay it at the same theta_t and not at a recovered one.
        """
        wanted = position in (0, window - 1)
        return State(clone(state.theta), {}) if wanted else None

    def theta_before(self, position: int, later: State, window: Window) -> Params:
        step = window.steps[position]
        if position > window.start and step.state is not None:
            return step.state.theta
        return window.rule.previous_theta(later, step.hyper)

    def state_before(
        self, position: int, theta: Params, gradient: Params, later: State, window: Window
    ) -> State:
        hyper = window.steps[position].hyper
        return State(theta, window.rule.previous_slots(theta, gradient, later, hyper))

    def _drift(self, theta: Params, window: Window) -> float | None:
        sentinel = window.steps[window.start].state
        if sentinel is None:
            return None
        drift = distance(theta, sentinel.theta)
        if not drift <= self.tolerance:
            raise ReplayError(
                f"undoing {len(window.steps)} steps drifted by {drift:.1e}, more than "
                f"{self.tolerance}: use adjoint=Stored() or a shorter window"
            )
        guards.check_movement(window.final.theta, sentinel.theta, theta, 10 * self.tolerance)
        return drift
