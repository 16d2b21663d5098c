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
from collections.abc import Sequence
from copy import copy as shallow_copy
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from deepteach.core.adjoint import guards
from deepteach.core.adjoint.guards import LEAST_MIXED_TOLERANCE
from deepteach.core.adjoint.moved_buffers import MovedBuffers
from deepteach.core.checks.examination import DIFFERENCES, EITHER, REVERSE, SECOND, Examined
from deepteach.core.checks.gradient_audit import compare_gradients
from deepteach.core.derivatives.finite_differences import LONGEST_WINDOW, FiniteDifferences
from deepteach.core.derivatives.forward_mode import lacks_forward_rule
from deepteach.core.derivatives.linearised import Linearised
from deepteach.core.given import whole_number
from deepteach.core.graph_memory import GraphMemory, Graphs
from deepteach.core.objective import Objective
from deepteach.core.optim import Hyper, Rule, State
from deepteach.core.record import Step
from deepteach.core.validation import Validation
from deepteach.errors import ConfigError, ReplayError
from deepteach.tree import Params, all_finite, repeat_slack, tree_map, zeros_like

EXACT, FINITE_DIFFERENCE = "exact", "finite-difference"

ROUNDINGS = 8
"""A sum is known no better than to this many units in the last place of its terms."""


@dataclass
class Window:
    """Recorded steps, oldest first, and the state after the last one.

    `graphs` are the training passes of its last steps with their graphs, by position, where the
    sweep can take them instead of repeating those passes.

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
    graphs: dict[int, Linearised] = field(default_factory=dict)
    examined: Examined = field(default_factory=Examined)
    """What is known of the student; what this sweep finds is known to the next ones."""
    memo: dict[Any, Any] = field(default_factory=dict)
    """The adjoint's own scratch of one sweep."""

    @property
    def length(self) -> int:
        """Steps that are looked back through."""
        return len(self.steps) - self.start


@dataclass(frozen=True)
class MetaGradient:
    """d_omega by teacher parameter, and the relative drift of the recovered states."""

    gradient: Params
    drift: float | None
    lost: str | None = None
    """Why the states had to be found otherwise than by undoing steps, where they had."""
    skipped: str | None = None
    """Why `gradient` is no gradient (it is 0) and must not be stepped on, where it is none."""


class AbstractAdjoint:
    """Crosses a window backwards. Subclasses say where the states come from.

    Args:
        tolerance: relative error of a replayed loss or recovered state that is an error.
        derivatives: "exact", or "finite-difference" for Hessian-vector and directional
            derivatives along dv by differences of gradients and losses; cheaper and
            approximate, so it has to be asked for (`deepteach doctor` shows its error).
        micro_batch: compute meta-gradients (replays, their derivatives, the validation gradient)
            this many samples at a time. Exact; where a batch's second-order graph is too large.
        mixed_precision: allow `torch.autocast` and a GradScaler around the training step.
            Replays run without them, so the meta-gradient is that of the full-precision step:
            allow for the difference by `Stored(mixed_precision=True, tolerance=0.1)`.
        graphs: of how many of a window's last training passes the graph is kept, so that the
            sweep need not repeat them: a training step less for each, and memory for its
            activations and their gradients. 0 keeps the last of a window of several steps, "auto"
            as many as fit `graph_memory.GRAPHS` bytes. The earliest step has no use for its graph,
            unless the optimizer's rule is not linear or weights move with theta.

    Raises:
        ConfigError: an option that this adjoint cannot keep, with the remedy.
    """

    before_step: bool = False
    """Teach inside `coach.loss`, before the batch is used, instead of in `coach.update`."""

    crosses: bool = True
    """Steps are looked back through: they must lead to where the student is."""

    anchored: bool = False
    """A window can begin only at a step before which the state was kept."""

    shares: bool = True
    """The window's last training pass may hand its graph to the sweep."""

    hands_over: bool = False
    """And so may others before it, by `graphs`."""

    reweighs: bool = True
    """The sweep asks the teacher about the recorded steps again."""
    forwards: bool = True
    """The earliest step is crossed by forward mode where it can be."""

    same_kernels: bool = False
    """Training passes must use the kernels of replays, to repeat their bits."""

    splits: bool = True
    """Works on parameters of which each rank holds a part."""

    undoes: bool = False
    """States are found by undoing steps, which needs the very gradients that were used."""

    def __init__(
        self,
        tolerance: float = 1e-3,
        *,
        derivatives: str = EXACT,
        micro_batch: int | None = None,
        mixed_precision: bool = False,
        graphs: Graphs = 0,
    ) -> None:
        if derivatives not in (EXACT, FINITE_DIFFERENCE):
            raise ConfigError(
                f"derivatives must be {EXACT!r} or {FINITE_DIFFERENCE!r}, got {derivatives!r}"
            )
        self.derivatives = derivatives
        self._set(tolerance, micro_batch, mixed_precision, graphs)

    def configured(
        self,
        *,
        tolerance: float | None = None,
        micro_batch: int | None = None,
        mixed_precision: bool = False,
        graphs: Graphs | None = None,
    ) -> Self:
        """A copy with these options; the tolerance and `graphs` as they are unless given."""
        other, kept = shallow_copy(self), self.graphs if graphs is None else graphs
        tolerance = self.tolerance if tolerance is None else tolerance
        other._set(tolerance, micro_batch, mixed_precision, kept)
        return other

    def _set(
        self, tolerance: float, micro_batch: int | None, mixed_precision: bool, graphs: Graphs
    ) -> None:
        if micro_batch is not None:
            micro_batch = whole_number("micro_batch", micro_batch)
        if mixed_precision and self.undoes:
            raise ConfigError(
                "undoing steps needs the gradients that were used, which replays in full "
                "precision are not: use Stored(mixed_precision=True, tolerance=0.1)"
            )
        if mixed_precision and tolerance < LEAST_MIXED_TOLERANCE:
            raise ConfigError(
                "replays in full precision repeat a mixed_precision step only roughly: allow that "
                f"with {type(self).__name__}(mixed_precision=True, tolerance=0.1)"
            )
        if micro_batch is not None and self.same_kernels:
            raise ConfigError(
                "a gradient summed over micro_batch chunks has other bits than the training "
                "step's: use adjoint=Checkpointed() or Stored()"
            )
        self.tolerance = tolerance
        self.micro_batch, self.mixed_precision = micro_batch, mixed_precision
        self.graphs: Graphs = graphs
        self.graph_memory = GraphMemory(graphs)
        if graphs:
            self._refuse_graphs()

    def _refuse_graphs(self) -> None:
        if not self.hands_over:
            raise ConfigError(
                f"{type(self).__name__} takes no graphs of training passes: drop graphs, or use "
                "adjoint=Stored() or Reversed()"
            )
        unlike = {
            "finite differences differentiate no graph": self.derivatives != EXACT,
            "micro_batch is for batches whose graph does not fit": self.micro_batch is not None,
            "a pass in half precision has not the graph of its replay": self.mixed_precision,
        }
        for reason, found in unlike.items():
            if found:
                raise ConfigError(f"{reason}: drop graphs={self.graphs!r}")

    def allowed(self, theta: Params) -> float:
        """How far a replay of float32 may be off: the tolerance, or what TF32 needs (`tree`)."""
        return max(self.tolerance, repeat_slack(theta.values()))

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

    def learn(self, found: MetaGradient) -> None:
        """What an update that has been done says of the next ones."""

    def state_dict(self) -> dict[str, Any]:
        """What it has learned, for a checkpoint."""
        return {} if (size := self.graph_memory.bytes) is None else {"graph": size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.graph_memory.bytes = state.get("graph")

    def spare(self, window: int) -> int:
        """Steps before the window to remember as well."""
        return 0

    def keeps(self, position: int, window: int) -> bool:
        """Whether `keep` may remember anything."""
        return True

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
        objective, newest = window.objective, window.steps[-1]
        d_theta = validation.gradient(window.final.theta)
        steps = window.steps[window.start :]
        about = (objective, window.examined)
        moved = MovedBuffers(*about, steps, window.final.theta, validation)
        derivative = self._derivative(window)
        guards.examine_gradients(*about, window.final.theta, steps, validation, derivative)
        # Hooks read the modes on the way back, when a replay has put them back already.
        with objective.student.in_modes(newest.passes[0].modes):
            return self.swept(window, d_theta, moved)

    def _derivative(self, window: Window) -> str:
        if self.derivatives == FINITE_DIFFERENCE:
            return DIFFERENCES
        if window.length > 1:
            return SECOND
        by_forward = window.rule.linear and window.objective.held and self.forwards
        return EITHER if by_forward else REVERSE

    def swept(self, window: Window, d_theta: Params, moved: MovedBuffers) -> MetaGradient:
        """The validation gradient `d_theta` at the window's end, carried back through it.

        `moved` is what the window's end owes to buffers.
        """
        objective, rule, theta = window.objective, window.rule, window.final.theta
        slots = {slot: zeros_like(tree) for slot, tree in window.final.slots.items()}
        cotangent = State(d_theta, slots)
        d_omega, objective.summed = zeros_like(window.omega), zeros_like(window.omega)
        later = window.final
        for position in reversed(range(window.start, len(window.steps))):
            step = window.steps[position]
            theta = self.theta_before(position, later, window)
            self._check_state(theta, position)
            # The earliest step needs no d_theta: a first-order directional derivative will do.
            if position == window.start and rule.linear and objective.held:
                along = rule.pull(later, {}, step.hyper, cotangent).gradient
                part = self.teacher_part(theta, step, window, along)
                d_omega = tree_map(torch.add, d_omega, part)
                break
            graph = self._linearised(theta, step, window)
            gradient = {name: leaf.detach() for name, leaf in graph.gradient.items()}
            gradient = objective.total(gradient, "replays")
            compare_gradients(rule.clip(gradient, step.hyper), step, self.allowed(theta))
            earlier = self.state_before(position, theta, gradient, later, window)
            pull = rule.pull(earlier, gradient, step.hyper, cotangent)
            if position == window.start:
                with guards.kept_intact():
                    part = graph.pull_back_teacher(objective.gathered(pull.gradient))
            else:
                with guards.kept_intact():
                    curvature, part = graph.pull_back(objective.gathered(pull.gradient))
                curvature = objective.total(curvature, "curvature")
                curvature = moved.add_to(curvature, theta, position - window.start)
                cotangent = State(tree_map(torch.add, pull.theta, curvature), pull.slots)
            d_omega = tree_map(torch.add, d_omega, part)
            later = earlier
        moved.check_first(theta)
        return MetaGradient(above_rounding(objective, d_omega), self._drift(theta, window))

    def teacher_part(self, theta: Params, step: Step, window: Window, along: Params) -> Params:
        """(dg/domega)^T along at one step, by forward mode where every operator has it.

        This rank's part of it, as everything that comes from a pass.
        """
        objective, held = window.objective, step.snapshot
        if self.derivatives == FINITE_DIFFERENCE:
            losses, moved = FiniteDifferences(objective).directional(theta, step, along)
            # They are those of a point nearby: the replay is checked only roughly.
            error = guards.replay_error(losses, step, objective.ranks)
            guards.refuse_replay(error, max(self.tolerance, 0.1), step, objective)
            return objective.teacher_gradient(window.omega, held, moved, step)
        if objective.held and objective.forward_mode:
            try:
                losses, moved = objective.directional(theta, step, along)
            except (NotImplementedError, RuntimeError) as error:
                if not lacks_forward_rule(error):
                    raise
                # Some operators (LSTM kernels) have no forward rule: double backward is
                # as exact, only dearer. Asked once, then remembered.
                objective.forward_mode = False
            else:
                guards.compare_losses(losses, step, self.allowed(theta), objective)
                # A forward rule may be 0 * inf where losses and gradients are finite, as that
                # of binary cross-entropy is at a probability of 1.
                if not objective.ranks.any(not all_finite([moved])):
                    return objective.teacher_gradient(window.omega, held, moved, step)
        return self._linearised(theta, step, window).pull_back_teacher(objective.gathered(along))

    def _linearised(self, theta: Params, step: Step, window: Window) -> Linearised:
        """g at a replayed step; the training pass's own graph where it was handed over."""
        place = next((i for i in window.graphs if window.steps[i] is step), None)
        if place is not None:
            return window.graphs.pop(place)  # it can be differentiated once
        graph = self.derived(window.objective).linearised(theta, step, window.omega)
        guards.compare_losses(graph.losses, step, self.allowed(theta), window.objective)
        return graph

    def _check_state(self, theta: Params, position: int) -> None:
        if not all_finite(theta.values()):
            raise ReplayError(
                f"the state recovered for step {position} of the window is not finite: "
                "shorten the window or use adjoint=Stored()",
                off=math.inf,
            )

    def _drift(self, theta: Params, window: Window) -> float | None:
        return None  # how far the recovered start of the window is from the true one


def above_rounding(objective: Objective, d_omega: Params) -> Params:
    """d_omega summed over ranks, 0 in entries that are no more than the rounding of their terms.

    Adam knows no scale: it would make a whole step of such an entry.
    """
    found = objective.ranks.summed(d_omega, "teacher")
    terms, objective.summed = objective.summed, None
    if terms is None:
        return found
    terms = objective.ranks.summed(terms, "rounding")

    def kept(leaf: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        # Asked so that a NaN is kept, for the update to refuse.
        small = leaf.abs() <= ROUNDINGS * torch.finfo(leaf.dtype).eps * size
        return torch.where(small, 0.0, leaf)

    return tree_map(kept, found, terms)


def kept(step: Step) -> State:
    """The state before a recorded step. Raises ReplayError where none was kept."""
    if step.state is None:
        raise ReplayError("no state was kept for a recorded step: make a new Coach")
    return step.state
