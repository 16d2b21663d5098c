"""The states of a window by undoing its steps (Algorithm 1), and what to do where that fails."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy as shallow_copy
from dataclasses import replace
from typing import Any

import torch

from deepteach.core.adjoint import guards
from deepteach.core.adjoint.base import (
    EXACT,
    AbstractAdjoint,
    MetaGradient,
    Window,
)
from deepteach.core.adjoint.moved_buffers import MovedBuffers
from deepteach.core.adjoint.stored import Checkpointed, Stored
from deepteach.core.graph_memory import Graphs
from deepteach.core.optim import Hyper, Rule, State, longest_reversal
from deepteach.errors import ConfigError, ReplayError, ReversalWarning
from deepteach.tree import Params, clone, zeros_like

COPIES = 2**30
"""Bytes that the states of a window may take, all of them kept, once reversal has failed."""

FASTEST_GROWTH = 1e3
"""Rounding is not believed to grow faster than that at an undone step."""


class Reversed(AbstractAdjoint):
    """Algorithm 1: undo the optimizer's steps from the last state. No memory per step.

    Fan et al., arXiv 2007.04649, with the corrections of docs/paper.md; options as in
    `AbstractAdjoint`.

    Undoing a step divides the momentum by mu, and multiplies what rounding has done so far
    by about 1 + eta lambda / mu where the loss is curved by lambda; a unit within a rounding of
    its kink (ReLU, max pooling) makes the gradient jump. A window too long for
    momentum and precision is refused, and a copy of the state that opens the window is
    compared with its reconstruction: a relative `tolerance` is enforced.

    With `fallback`, the default of a Coach and of `train`, no window is lost to rounding: the
    copy has the optimizer's buffers too (in windows of three steps or more), and where undoing
    fails, that window's states are found by running forward from it. From the next window
    on states are kept: all, where they take less than `COPIES` bytes, else as `Checkpointed`
    keeps them. Where running forward does not lead to the same states either, because the
    device's kernels round differently each time, that one update is skipped. A
    `ReversalWarning` says so, once; checkpoints remember it.

    Raises:
        ConfigError: when the Coach is made: a step that cannot be undone (momentum 0,
            Nesterov), or too long a window.
        ReplayError: in an update: the recovered states are not the true ones.
    """

    undoes = True
    hands_over = True

    def __init__(
        self,
        tolerance: float = 1e-3,
        *,
        fallback: bool = False,
        derivatives: str = EXACT,
        micro_batch: int | None = None,
        mixed_precision: bool = False,
        graphs: Graphs = 0,
    ) -> None:
        super().__init__(
            tolerance,
            derivatives=derivatives,
            micro_batch=micro_batch,
            mixed_precision=mixed_precision,
            graphs=graphs,
        )
        self.fallback = fallback
        self.keeping = False
        """Undoing has failed, so states are kept."""

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

    def keeps(self, position: int, window: int) -> bool:
        return self.keeping or position in (0, window - 1)

    def keep(self, state: State, position: int, window: int) -> State | None:
        """The start of the window, and the starts of its last steps.

        Those may hand their training passes to the sweep; a resumed run, which cannot, must
        replay them at the same theta_t and not at recovered ones.
        """
        if self.keeping:
            return self._keeper(state, window).keep(state, position, window)
        # Over two steps nothing is undone that was undone before: rounding does not grow.
        if self.fallback and position == 0 and window > 2:
            return state.mapped(clone)
        wanted = position == 0 or position >= window - self.graph_memory.of(window)
        return State(clone(state.theta), {}) if wanted else None

    def theta_before(self, position: int, later: State, window: Window) -> Params:
        step = window.steps[position]
        if position > window.start and step.state is not None:
            return step.state.theta
        for h in step.hyper.values():  # a schedule may have changed what `check` saw
            reason = window.rule.refuse_reversal(h)
            if reason:
                raise ConfigError(f"{reason}: use adjoint=Stored()")
        window.memo["undone"] = window.memo.get("undone", 0) + 1
        return window.rule.previous_theta(later, step.hyper)

    def state_before(
        self, position: int, theta: Params, gradient: Params, later: State, window: Window
    ) -> State:
        hyper = window.steps[position].hyper
        return State(theta, window.rule.previous_slots(theta, gradient, later, hyper))

    def swept(self, window: Window, d_theta: Params, moved: MovedBuffers) -> MetaGradient:
        """By undoing steps; with `fallback` by other means where that fails."""
        start = window.steps[window.start].state
        whole = start is not None and set(start.slots) == set(window.rule.slot_names)
        if self.keeping and whole:
            return self._kept().swept(window, d_theta, moved)
        try:
            # It goes back with the sweep; another one begins where this one does.
            return super().swept(window, d_theta, shallow_copy(moved))
        except ReplayError as error:
            # A state that was undone from a copy is off by one rounding: it is no excuse.
            if error.off is None or window.memo.get("undone", 0) < 2:
                raise
            growth, lost = _grown(error.off, window)
            if not (self.fallback and whole):
                if growth > FASTEST_GROWTH:
                    raise
                raise ReplayError(
                    f"{lost}, unless something besides the optimizer changed the student: use "
                    "adjoint=Stored(), Checkpointed() or Exact(), or a shorter window",
                    off=error.off,
                ) from None
        return self._forward(window, d_theta, moved, lost)

    def learn(self, found: MetaGradient) -> None:
        if found.lost is not None and not self.keeping:
            done = "was skipped" if found.skipped else "was computed by running forward instead"
            warnings.warn(
                f"{found.lost}: this update {done}, and from now on the states of a window are "
                "kept; give adjoint=Stored() or Checkpointed() to do so from the start",
                ReversalWarning,
                stacklevel=4,
            )
            self.keeping = True

    def state_dict(self) -> dict[str, Any]:
        return {"keeping": self.keeping, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.keeping = state.get("keeping", False)

    def _kept(self) -> Checkpointed:
        """Crosses a window of which all states are kept, or some."""
        return Checkpointed(self.tolerance, micro_batch=self.micro_batch)

    def _keeper(self, state: State, window: int) -> AbstractAdjoint:
        """Which states of a window are kept."""
        trees = (state.theta, *state.slots.values())
        size = sum(leaf.numel() * leaf.element_size() for tree in trees for leaf in tree.values())
        return Stored(self.tolerance) if size * window <= COPIES else self._kept()

    def _forward(
        self, window: Window, d_theta: Params, moved: MovedBuffers, lost: str
    ) -> MetaGradient:
        """The window's states by running forward from its start, then the window backwards.

        Raises:
            ReplayError: the steps themselves do not repeat; rounding was not to blame.
        """
        objective, ranks = window.objective, window.objective.ranks
        state = window.steps[window.start].state
        assert state is not None
        keeper = self._keeper(state, window.length)
        steps = list(window.steps[: window.start])
        worst = 0.0
        try:
            for position, step in enumerate(window.steps[window.start :]):
                steps.append(replace(step, state=keeper.keep(state, position, window.length)))
                graph = objective.linearised(state.theta, step, window.omega, first_order=True)
                off = guards.replay_error(graph.losses, step, ranks)
                guards.refuse_replay(off, self.allowed(state.theta), step, objective)
                worst = max(worst, off)
                gradient = objective.total(graph.gradient, "replays")
                state = window.rule.step(state, gradient, step.hyper)
            again = replace(window, steps=steps, graphs={}, memo={})
            return replace(self._kept().swept(again, d_theta, moved), lost=lost)
        except ReplayError:
            if worst == 0:  # what repeats to the last bit has no rounding that could grow
                raise
        return MetaGradient(zeros_like(window.omega), None, lost=lost, skipped=lost)

    def _drift(self, theta: Params, window: Window) -> float | None:
        start = window.steps[window.start].state
        if start is None:
            return None
        gap, allowed = guards.Gap(theta, start.theta), self.allowed(theta)
        drift = gap.drift
        if not drift <= allowed:
            raise ReplayError(
                f"undoing {window.length} steps drifted by {drift:.1e}, more than "
                f"{allowed}: use adjoint=Stored() or a shorter window",
                off=drift,
            )
        guards.check_movement(window.final.theta, gap, max(10 * self.tolerance, allowed))
        return drift


def _grown(off: float, window: Window) -> tuple[float, str]:
    """What rounding was multiplied by at each undone step to be `off` now, and that in words."""
    undone = window.memo["undone"]
    dtype = max(
        (leaf.dtype for leaf in window.final.theta.values()), key=lambda d: torch.finfo(d).eps
    )
    eps = torch.finfo(dtype).eps
    growth = (max(off, eps) / eps) ** (1 / undone)
    return growth, (
        f"undoing {undone} of the window's {window.length} steps lost the student's states (off by "
        f"{off:.1e}): rounding in {dtype} grew about {growth:.0f} times at each undone step"
    )
