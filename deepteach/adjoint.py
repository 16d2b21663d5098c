"""How the meta-gradient is computed: one backward recursion, several sources of states.

With d_theta = dM/dtheta_{t+1} and cotangents of the optimizer's slots, one recorded step is
crossed backwards by the rule's `pull` (giving dv, the cotangent of g_t) and by

    d_omega += (dg_t/domega)^T dv        d_theta += (d^2 L_t/dtheta^2) dv

Here M is the validation loss, so d_omega is what a minimiser descends. The adjoints differ
only in where theta_t comes from. See Fan et al., arXiv 2007.04649, Eq. 3 and Algorithm 1;
docs/paper.md lists the corrections.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from deepteach.differences import LONGEST_WINDOW, FiniteDifferences
from deepteach.errors import ConfigError, ReplayError
from deepteach.objective import Linearised, Objective, Step, Validation, gradients
from deepteach.rules import Hyper, Rule, State, longest_reversal
from deepteach.tree import Params, all_finite, clone, distance, norm, tree_map, zeros_like

EXACT, FINITE_DIFFERENCE = "exact", "finite-difference"


@dataclass
class Window:
    """Recorded steps, oldest first, and the state after the last one.

    The window proper begins at `start`; the older steps are there for adjoints that find
    its first state by running forward from a kept one.
    """

    steps: Sequence[Step]
    final: State
    objective: Objective
    rule: Rule
    omega: Params
    start: int = 0
    held: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the optimizer holds after the last step, by parameter."""

    memo: dict[Any, Any] = field(default_factory=dict)
    """The adjoint's own scratch of one sweep."""


@dataclass(frozen=True)
class MetaGradient:
    """d_omega by teacher parameter, and the relative drift of the recovered states."""

    gradient: Params
    drift: float | None


class AbstractAdjoint:
    """Crosses a window backwards. Subclasses say where the states come from.

    Args:
        tolerance: relative error of a replayed loss or recovered state that is an error.
        derivatives: "exact", or "finite-difference" for Hessian-vector and directional
            derivatives along dv by differences of gradients and losses; cheaper and
            approximate, so it has to be asked for (`deepteach doctor` shows its error).
    """

    before_step: bool = False
    """Teach inside `coach.loss`, before the batch is used, instead of in `coach.update`."""

    shares: bool = True
    """The window's last training pass may hand its graph to the sweep."""

    same_kernels: bool = False
    """Training passes must use the kernels of replays, to repeat their bits."""

    undoes: bool = False
    """States are found by undoing steps, which needs the very gradients that were used."""

    def __init__(self, tolerance: float = 1e-3, *, derivatives: str = EXACT) -> None:
        if derivatives not in (EXACT, FINITE_DIFFERENCE):
            raise ConfigError(
                f"derivatives must be {EXACT!r} or {FINITE_DIFFERENCE!r}, got {derivatives!r}"
            )
        self.tolerance, self.derivatives = tolerance, derivatives

    def derived(self, objective: Objective) -> Objective | FiniteDifferences:
        """The objective, or its differences. Raises ConfigError where it has none."""
        exact = self.derivatives == EXACT
        return objective if exact else FiniteDifferences(objective)

    def check(self, rule: Rule, hyper: Sequence[Hyper], window: int, dtype: torch.dtype) -> None:
        """Refuse, before anything runs, what this adjoint cannot do exactly."""
        if self.derivatives == FINITE_DIFFERENCE and window > LONGEST_WINDOW:
            raise ConfigError(
                f"finite differences lose the meta-gradient over {window} steps: use "
                f"window={LONGEST_WINDOW} or derivatives='exact'"
            )

    def spare(self, window: int) -> int:
        """How many steps before the window to remember as well."""
        return 0

    def keep(self, state: State, position: int, window: int) -> State | None:
        """What to remember of the state before a step (references in, copies out).

        `position` counts from the step that opens the window; it is negative before that.
        """
        raise NotImplementedError

    def theta_before(self, position: int, later: State, window: Window) -> Params:
        """theta_t of `window.steps[position]`, given the state after that step."""
        raise NotImplementedError

    def state_before(
        self, position: int, theta: Params, gradient: Params, later: State, window: Window
    ) -> State:
        """(theta_t, slots_t) once g_t is known."""
        raise NotImplementedError

    def gradient(self, window: Window, validation: Validation) -> MetaGradient:
        """d_omega over the window: the validation gradient at its end, carried back."""
        objective, rule, ranks = window.objective, window.rule, window.objective.ranks
        d_theta = validation.gradient(window.final.theta)
        d_slots = {slot: zeros_like(d_theta) for slot in rule.slot_names}
        cotangent = State(d_theta, d_slots)
        d_omega = zeros_like(window.omega)
        later = window.final
        for position in reversed(range(window.start, len(window.steps))):
            step = window.steps[position]
            theta = self.theta_before(position, later, window)
            self._check_state(theta, position)
            # The earliest step needs no d_theta: a first-order directional derivative will do.
            if position == window.start and rule.linear and objective.linear:
                along = rule.pull(later, {}, step.hyper, cotangent).gradient
                part = self.teacher_part(theta, step, window, along)
                d_omega = tree_map(torch.add, d_omega, part)
                break
            graph = self._linearised(theta, step, window)
            gradient = {name: leaf.detach() for name, leaf in graph.gradient.items()}
            gradient = ranks.summed(gradient, "replays")
            earlier = self.state_before(position, theta, gradient, later, window)
            pull = rule.pull(earlier, gradient, step.hyper, cotangent)
            if position == window.start:
                with _kept_intact():
                    part = graph.pull_back_teacher(pull.gradient, objective, step)
            else:
                with _kept_intact():
                    curvature, part = graph.pull_back(pull.gradient, objective, step)
                curvature = ranks.summed(curvature, "curvature")
                cotangent = State(tree_map(torch.add, pull.theta, curvature), pull.slots)
            d_omega = tree_map(torch.add, d_omega, part)
            later = earlier
        return MetaGradient(ranks.summed(d_omega, "teacher"), self._drift(theta, window))

    def teacher_part(self, theta: Params, step: Step, window: Window, along: Params) -> Params:
        """(dg/domega)^T along at one step, by forward mode where every operator has it.

        This rank's part of it, as everything that comes from a pass.
        """
        objective = window.objective
        if self.derivatives == FINITE_DIFFERENCE:
            losses, slopes = FiniteDifferences(objective).directional(theta, step, along)
            # They are those of a point nearby: the replay is checked only roughly.
            _compare_losses(losses, step, max(self.tolerance, 0.1))
            return objective.teacher_gradient(window.omega, step, slopes)
        if objective.linear and objective.forward_mode:
            try:
                losses, slopes = objective.directional(theta, step, along)
            except (NotImplementedError, RuntimeError) as error:
                if not _lacks_forward_rule(error):
                    raise
                # Some operators (LSTM kernels) have no forward rule: double backward is
                # as exact, only dearer. Asked once, then remembered.
                objective.forward_mode = False
            else:
                _compare_losses(losses, step, self.tolerance)
                return objective.teacher_gradient(window.omega, step, slopes)
        return self._linearised(theta, step, window).pull_back_teacher(along, objective, step)

    def _linearised(self, theta: Params, step: Step, window: Window) -> Linearised:
        """g at a replayed step; the training pass's own graph where it was shared."""
        if step.shared is not None:
            # A graph can be differentiated once; a second sweep replays the step.
            graph, step.shared = step.shared, None
            return graph
        graph = self.derived(window.objective).linearised(theta, step, window.omega)
        _compare_losses(graph.losses, step, self.tolerance)
        return graph

    def _check_state(self, theta: Params, position: int) -> None:
        if not all_finite(theta.values()):
            raise ReplayError(
                f"the state recovered for step {position} of the window is not finite: "
                "shorten the window or use adjoint=Stored()"
            )

    def _drift(self, theta: Params, window: Window) -> float | None:
        """How far the recovered start of the window is from the true one, where known."""
        return None


class Reversed(AbstractAdjoint):
    """Algorithm 1: undo the optimizer's steps from the last state. No memory per step.

    Undoing a step divides the momentum by mu, which grows rounding errors; a window too
    long for momentum and precision is refused, and a copy of the state that opens the
    window is compared with its reconstruction: a relative `tolerance` is enforced.
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
        kept = position in (0, window - 1)
        return State(clone(state.theta), {}) if kept else None

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
        _check_movement(window.final.theta, sentinel.theta, theta, 10 * self.tolerance)
        return drift


class Stored(AbstractAdjoint):
    """Keeps a copy of the state before each step of the window: exact for any rule."""

    def keep(self, state: State, position: int, window: int) -> State | None:
        return _copy(state)

    def theta_before(self, position: int, later: State, window: Window) -> Params:
        return _kept(window.steps[position]).theta

    def state_before(
        self, position: int, theta: Params, gradient: Params, later: State, window: Window
    ) -> State:
        """The stored state; its step must lead to the later state, or something else moved it."""
        kept = _kept(window.steps[position])
        advanced = window.rule.step(kept, gradient, window.steps[position].hyper)
        _check_movement(kept.theta, later.theta, advanced.theta, self.tolerance)
        return kept


class Checkpointed(AbstractAdjoint):
    """Keeps every s-th state, s = ceil(sqrt(B)), and runs forward from it to the others.

    Any rule, any window: about 2 sqrt(B) states in memory, and one more training pass over
    the window. With B = K = a whole short training it is the paper's "all student models on
    the trajectory".
    """

    def spare(self, window: int) -> int:
        return self._stride(window) - 1

    def keep(self, state: State, position: int, window: int) -> State | None:
        return _copy(state) if position % self._stride(window) == 0 else None

    def theta_before(self, position: int, later: State, window: Window) -> Params:
        return self._state(position, window).theta

    def state_before(
        self, position: int, theta: Params, gradient: Params, later: State, window: Window
    ) -> State:
        kept = self._state(position, window)
        advanced = window.rule.step(kept, gradient, window.steps[position].hyper)
        _check_movement(kept.theta, later.theta, advanced.theta, self.tolerance)
        return kept

    def _stride(self, window: int) -> int:
        return math.isqrt(window - 1) + 1

    def _state(self, position: int, window: Window) -> State:
        """The state before a step; the states between two anchors are found all at once."""
        if position not in window.memo:
            window.memo.clear()
            anchor = position
            while window.steps[anchor].state is None and anchor > 0:
                anchor -= 1
            state = _kept(window.steps[anchor])
            window.memo[anchor] = state
            for index in range(anchor, position):
                step = window.steps[index]
                objective, omega = window.objective, window.omega
                pass_ = objective.linearised(state.theta, step, omega, first_order=True)
                _compare_losses(pass_.losses, step, self.tolerance)
                gradient = objective.ranks.summed(pass_.gradient, "replays")
                state = window.rule.step(state, gradient, step.hyper)
                window.memo[index + 1] = state
        return window.memo[position]


class Unrolled(Stored):
    """Plain automatic differentiation through the window: slow, and the oracle of the rest."""

    shares = False

    def gradient(self, window: Window, validation: Validation) -> MetaGradient:
        objective, rule, ranks = window.objective, window.rule, window.objective.ranks
        d_theta = validation.gradient(window.final.theta)
        omega = {name: leaf.detach().requires_grad_() for name, leaf in window.omega.items()}
        state = _kept(window.steps[window.start])
        with torch.enable_grad():
            start = state.theta
            theta = {name: leaf.detach().requires_grad_() for name, leaf in start.items()}
            state = State(theta, state.slots)
            for step in window.steps[window.start :]:
                snapshot = objective.replay(state.theta, step)
                recorded = objective.weights(omega, step.snapshot) if objective.linear else None
                value = objective.value(omega, snapshot, recorded)
                gradient = gradients(value, state.theta, create_graph=True)
                gradient = ranks.summed(gradient, "replays")
                state = rule.step(state, gradient, step.hyper)
            moved = {name: leaf for name, leaf in state.theta.items() if leaf.requires_grad}
            end = torch.stack([(moved[name] * d_theta[name]).sum() for name in moved]).sum()
            # Every rank has this end, and the end is the sum of what ranks have.
            d_omega = gradients(end / ranks.count, omega)
            d_omega = ranks.summed(d_omega, "teacher")
        _check_movement(start, window.final.theta, state.theta, self.tolerance)
        return MetaGradient(d_omega, distance(state.theta, window.final.theta))


def _copy(state: State) -> State:
    return State(clone(state.theta), {slot: clone(tree) for slot, tree in state.slots.items()})


def _kept(step: Step) -> State:
    if step.state is None:
        raise ReplayError("no state was kept for a recorded step: make a new Coach")
    return step.state


def _check_movement(start: Params, end: Params, reached: Params, slack: float) -> None:
    """`reached` must be `end`, to within `slack` of the movement and the rounding of theta.

    The drift tolerance alone is relative to theta and would not see an added loss term at a
    small learning rate.
    """
    movement = norm(tree_map(torch.sub, end, start))
    error = norm(tree_map(torch.sub, reached, end))
    eps = max((torch.finfo(leaf.dtype).eps for leaf in end.values()), default=0.0)
    if not error <= slack * movement + 100 * eps * norm(end):
        raise ReplayError(
            f"the recorded steps do not connect the student's states (off by {error:.1e} of a "
            f"movement of {movement:.1e}): something besides coach.loss and the optimizer "
            "changed the student, such as an added loss term or a parameter update outside "
            "optimizer.step(); or, where steps are undone, rounding lost them: use adjoint=Stored()"
        )


def _compare_losses(losses: torch.Tensor, step: Step, tolerance: float) -> None:
    """A replayed pass must repeat its losses, or it saw something else than the first."""
    recorded = step.snapshot.losses
    error = float((losses - recorded).abs().max() / (1 + recorded.abs().mean()))
    if not error <= tolerance:
        raise ReplayError(
            f"replaying a step gave other losses than the first pass (by {error:.1e}): the "
            "student is not deterministic (randomness outside torch's generators?), or its "
            "inputs were changed in place after coach.loss; or, where steps are undone, the "
            "recovered state is too far off: use adjoint=Stored()"
        )


@contextmanager
def _kept_intact() -> Iterator[None]:
    """Say in the user's terms that a shared pass's batch was changed before the update."""
    try:
        yield
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise ReplayError(
            "a tensor of a recorded step was changed in place after coach.loss: give each batch "
            "tensors of its own, and leave the student's buffers alone"
        ) from None


def _lacks_forward_rule(error: Exception) -> bool:
    text = str(error)
    return "forward AD" in text or "forward-mode" in text or "jvp" in text
