"""How the meta-gradient is computed: one backward recursion, several sources of states.

With d_theta = dM/dtheta_{t+1} and cotangents of the optimizer's slots, one recorded step is
crossed backwards by the rule's `pull` (giving dv, the cotangent of g_t) and by

    d_omega += (dg_t/domega)^T dv        d_theta += (d^2 L_t/dtheta^2) dv

Here M is the validation loss, so d_omega is what a minimiser descends. The adjoints differ
only in where theta_t comes from. See Fan et al., arXiv 2007.04649, Eq. 3 and Algorithm 1;
docs/paper.md lists the corrections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deepteach.errors import ConfigError, ReplayError
from deepteach.objective import Linearised, Objective, Step, Validation, gradients
from deepteach.rules import Hyper, Rule, State, longest_reversal
from deepteach.tree import Params, all_finite, clone, distance, norm, tree_map, zeros_like


@dataclass
class Window:
    """The recorded steps, oldest first, and the state after the last one."""

    steps: Sequence[Step]
    final: State
    objective: Objective
    rule: Rule
    omega: Params


@dataclass(frozen=True)
class MetaGradient:
    """d_omega by teacher parameter, and the relative drift of the recovered states."""

    gradient: Params
    drift: float | None


class AbstractAdjoint:
    """Crosses a window backwards. Subclasses say where the states come from."""

    tolerance: float = 1e-3
    before_step: bool = False
    """Teach inside `coach.loss`, before the batch is used, instead of in `coach.update`."""

    def check(self, rule: Rule, hyper: Sequence[Hyper], window: int, dtype: torch.dtype) -> None:
        """Refuse, before anything runs, what this adjoint cannot do exactly."""

    def keep(self, state: State, opens_window: bool) -> State | None:
        """What to remember of the state before a step (references in, copies out)."""
        raise NotImplementedError

    def theta_before(self, later: State, step: Step, rule: Rule) -> Params:
        """theta_t, given the state after the step."""
        raise NotImplementedError

    def state_before(
        self, theta: Params, gradient: Params, later: State, step: Step, rule: Rule
    ) -> State:
        """(theta_t, slots_t) once g_t is known."""
        raise NotImplementedError

    def gradient(self, window: Window, validation: Validation) -> MetaGradient:
        """d_omega over the window: the validation gradient at its end, carried back."""
        objective, rule = window.objective, window.rule
        d_theta = validation.gradient(window.final.theta)
        d_slots = {slot: zeros_like(d_theta) for slot in rule.slot_names}
        cotangent = State(d_theta, d_slots)
        d_omega = zeros_like(window.omega)
        later = window.final
        for position in reversed(range(len(window.steps))):
            step = window.steps[position]
            theta = self.theta_before(later, step, rule)
            self._check_state(theta, position)
            # The earliest step needs no d_theta: a first-order directional derivative will do.
            if position == 0 and rule.linear and objective.linear:
                along = rule.pull(later, {}, step.hyper, cotangent).gradient
                part = self.teacher_part(theta, step, window, along)
                d_omega = tree_map(torch.add, d_omega, part)
                break
            graph = objective.linearised(theta, step, window.omega)
            self._check_replay(graph, step)
            gradient = {name: leaf.detach() for name, leaf in graph.gradient.items()}
            earlier = self.state_before(theta, gradient, later, step, rule)
            pull = rule.pull(earlier, gradient, step.hyper, cotangent)
            if position == 0:
                part = graph.pull_back_teacher(pull.gradient, objective, step)
            else:
                curvature, part = graph.pull_back(pull.gradient, objective, step)
                cotangent = State(tree_map(torch.add, pull.theta, curvature), pull.slots)
            d_omega = tree_map(torch.add, d_omega, part)
            later = earlier
        return MetaGradient(d_omega, self._drift(theta, window))

    def teacher_part(self, theta: Params, step: Step, window: Window, along: Params) -> Params:
        """(dg/domega)^T along at one step, by forward mode where every operator has it."""
        objective = window.objective
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
        graph = objective.linearised(theta, step, window.omega)
        self._check_replay(graph, step)
        return graph.pull_back_teacher(along, objective, step)

    def _check_state(self, theta: Params, position: int) -> None:
        if not all_finite(theta.values()):
            raise ReplayError(
                f"the state recovered for step {position} of the window is not finite: "
                "shorten the window or use adjoint=Stored()"
            )

    def _check_replay(self, graph: Linearised, step: Step) -> None:
        _compare_losses(graph.losses, step, self.tolerance)

    def _drift(self, theta: Params, window: Window) -> float | None:
        """How far the recovered start of the window is from the true one, where known."""
        return None


class Reversed(AbstractAdjoint):
    """Algorithm 1: undo the optimizer's steps from the last state. No memory per step.

    Undoing a step divides the momentum by mu, which grows rounding errors; a window too
    long for momentum and precision is refused, and a copy of the state that opens the
    window is compared with its reconstruction: a relative `tolerance` is enforced.
    """

    def __init__(self, tolerance: float = 1e-3) -> None:
        self.tolerance = tolerance

    def check(self, rule: Rule, hyper: Sequence[Hyper], window: int, dtype: torch.dtype) -> None:
        for h in hyper:
            reason = rule.refuse_reversal(h)
            if reason:
                raise ConfigError(f"{reason}: use adjoint=Stored()")
            longest = longest_reversal(h.momentum, dtype, self.tolerance)
            if window > longest:
                raise ConfigError(
                    f"undoing {window} steps at momentum {h.momentum} in {dtype} would lose "
                    f"the states (at most {longest} stay within {self.tolerance}): "
                    "use a shorter window or adjoint=Stored()"
                )

    def keep(self, state: State, opens_window: bool) -> State | None:
        return State(clone(state.theta), {}) if opens_window else None

    def theta_before(self, later: State, step: Step, rule: Rule) -> Params:
        return rule.previous_theta(later, step.hyper)

    def state_before(
        self, theta: Params, gradient: Params, later: State, step: Step, rule: Rule
    ) -> State:
        return State(theta, rule.previous_slots(theta, gradient, later, step.hyper))

    def _drift(self, theta: Params, window: Window) -> float | None:
        sentinel = window.steps[0].state
        if sentinel is None:
            return None
        drift = distance(theta, sentinel.theta)
        if not drift <= self.tolerance:
            raise ReplayError(
                f"undoing {len(window.steps)} steps drifted by {drift:.1e}, more than "
                f"{self.tolerance}: use adjoint=Stored() or a shorter window"
            )
        _check_movement(window.final.theta, sentinel.theta, theta)
        return drift


class Stored(AbstractAdjoint):
    """Keeps a copy of the state before each step of the window: exact for any rule."""

    def keep(self, state: State, opens_window: bool) -> State | None:
        return State(clone(state.theta), {k: clone(v) for k, v in state.slots.items()})

    def theta_before(self, later: State, step: Step, rule: Rule) -> Params:
        return _kept(step).theta

    def state_before(
        self, theta: Params, gradient: Params, later: State, step: Step, rule: Rule
    ) -> State:
        """The stored state; its step must lead to the later state, or something else moved it."""
        kept = _kept(step)
        advanced = rule.step(kept, gradient, step.hyper)
        _check_movement(kept.theta, later.theta, advanced.theta)
        return kept


class Unrolled(Stored):
    """Plain automatic differentiation through the window: slow, and the oracle of the rest."""

    def gradient(self, window: Window, validation: Validation) -> MetaGradient:
        objective, rule = window.objective, window.rule
        d_theta = validation.gradient(window.final.theta)
        omega = {name: leaf.detach().requires_grad_() for name, leaf in window.omega.items()}
        state = _kept(window.steps[0])
        with torch.enable_grad():
            theta = {name: leaf.detach().requires_grad_() for name, leaf in state.theta.items()}
            state = State(theta, state.slots)
            for step in window.steps:
                snapshot = objective.replay(state.theta, step)
                recorded = objective.weights(omega, step.snapshot) if objective.linear else None
                value = objective.value(omega, snapshot, recorded)
                gradient = gradients(value, state.theta, create_graph=True)
                state = rule.step(state, gradient, step.hyper)
            moved = {name: leaf for name, leaf in state.theta.items() if leaf.requires_grad}
            end = torch.stack([(moved[name] * d_theta[name]).sum() for name in moved]).sum()
            d_omega = gradients(end, omega)
        _check_movement(_kept(window.steps[0]).theta, window.final.theta, state.theta)
        return MetaGradient(d_omega, distance(state.theta, window.final.theta))


def _kept(step: Step) -> State:
    if step.state is None:
        raise ReplayError("no state was kept for a recorded step: make a new Coach")
    return step.state


def _check_movement(start: Params, end: Params, reached: Params) -> None:
    """`reached` must be `end`, to within 5 % of the movement and the rounding of theta.

    The drift tolerance alone is relative to theta and would not see an added loss term at a
    small learning rate.
    """
    movement = norm(tree_map(torch.sub, end, start))
    error = norm(tree_map(torch.sub, reached, end))
    eps = max((torch.finfo(leaf.dtype).eps for leaf in end.values()), default=0.0)
    if not error <= 0.05 * movement + 100 * eps * norm(end):
        raise ReplayError(
            f"the recorded steps do not connect the student's states (off by {error:.1e} of a "
            f"movement of {movement:.1e}): something besides coach.loss and the optimizer "
            "changed the student, such as an added loss term or a parameter update outside "
            "optimizer.step()"
        )


def _compare_losses(losses: torch.Tensor, step: Step, tolerance: float) -> None:
    """A replayed pass must repeat its losses, or it saw something else than the first."""
    recorded = step.snapshot.losses
    error = float((losses - recorded).abs().max() / (1 + recorded.abs().mean()))
    if not error <= tolerance:
        raise ReplayError(
            f"replaying a step gave other losses than the first pass (by {error:.1e}): the "
            "student is not deterministic (randomness outside torch's generators?), or its "
            "inputs were changed in place after coach.loss"
        )


def _lacks_forward_rule(error: Exception) -> bool:
    text = str(error)
    return "forward AD" in text or "forward-mode" in text or "jvp" in text
