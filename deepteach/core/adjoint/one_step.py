"""Teaching from a single step: a virtual step ahead, or a first-order difference behind."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from deepteach.core.adjoint import guards
from deepteach.core.adjoint.base import (
    FINITE_DIFFERENCE,
    AbstractAdjoint,
    MetaGradient,
    Window,
    above_rounding,
)
from deepteach.core.checks.examination import DIFFERENCES, EITHER
from deepteach.core.derivatives.linearised import gradients
from deepteach.core.optim import Hyper, MomentumSGD, State
from deepteach.core.validation import Validation
from deepteach.errors import ConfigError
from deepteach.tree import norm, tree_map, zeros_like


class Lookahead(AbstractAdjoint):
    """The one-step meta-gradient of Meta-Weight-Net (Shu et al., NeurIPS 2019).

    theta^ is a virtual step from the present parameters on the batch about to be used. The
    teacher descends the validation loss at theta^; the batch is then weighted by the updated
    teacher. Exactly, and without a second-order graph,

        d_omega = -grad_omega sum_k u_k <eta grad L_valid(theta^), grad l_k(theta)>

    Args:
        momentum: take the step that the optimizer would really take; as published the virtual
            step is plain SGD, without momentum and weight decay.
    """

    before_step = True
    crosses = False
    shares = False

    def __init__(self, momentum: bool = False) -> None:
        # The virtual step starts at the present parameters, not where the batch was seen.
        super().__init__(tolerance=math.inf)
        self.momentum = momentum

    def keep(self, state: State, position: int, window: int) -> State | None:
        return None

    def gradient(self, window: Window, validation: Validation) -> MetaGradient:
        step, theta = window.steps[-1], window.final.theta
        graph = window.objective.linearised(theta, step, window.omega, first_order=True)
        # What gets no gradient, on no rank, is not stepped on.
        used = window.objective.ranks.table(*(n in graph.used for n in step.hyper)).any(0).tolist()
        kept = zip(step.hyper.items(), used, strict=True)
        step = replace(step, hyper={name: hyper for (name, hyper), here in kept if here})
        rule, state, hyper = window.rule, window.final, step.hyper
        if not self.momentum:
            rule = MomentumSGD()
            state = State(theta, {slot: zeros_like(theta) for slot in rule.slot_names})
            hyper = {name: Hyper(lr=h.lr) for name, h in step.hyper.items()}
        gradient = window.objective.total(graph.gradient, "replays")
        later = rule.step(state, gradient, hyper)
        d_theta = validation.gradient(later.theta)
        approximate = self.derivatives == FINITE_DIFFERENCE
        derivative = DIFFERENCES if approximate else EITHER
        about = (window.objective, window.examined)
        guards.examine_gradients(*about, theta, [step], validation, derivative)
        cotangent = State(d_theta, {k: zeros_like(tree) for k, tree in later.slots.items()})
        along = rule.pull(state, gradient, hyper, cotangent).gradient
        window.objective.summed = zeros_like(window.omega)
        part = self.teacher_part(theta, step, window, along)
        return MetaGradient(above_rounding(window.objective, part), None)


class FirstOrder(AbstractAdjoint):
    """SAMA's estimator (Choe et al., arXiv 2310.05674): no second derivative, no window.

    With v = grad L_valid(theta) at the present parameters, eps = radius / |v| and L the loss
    of the last batch,

        d_omega = -(grad_omega L(theta + eps v) - grad_omega L(theta - eps v)) / (2 eps)

    The student's rate is left out (an adaptive teacher's optimizer does not see it), and the
    preconditioner is the identity, as the source has it for SGD. Features that are constants
    of theta stay those of the recorded step, so that as eps -> 0 this is the one-step
    meta-gradient divided by the rate. It is biased: it ignores momentum and curvature.

    Args:
        radius: length of the step to either side; 0.01 is that of DARTS and of the authors'
            library.

    Raises:
        ConfigError: a radius that is not finite and above 0.
    """

    crosses = False
    shares = False

    def __init__(self, radius: float = 0.01) -> None:
        super().__init__()
        if not (0 < radius < math.inf):
            raise ConfigError(f"FirstOrder's radius must be finite and above 0, got {radius}")
        self.radius = radius

    def keep(self, state: State, position: int, window: int) -> State | None:
        return None

    def gradient(self, window: Window, validation: Validation) -> MetaGradient:
        objective, step, theta = window.objective, window.steps[-1], window.final.theta
        direction = validation.gradient(theta)
        for name in direction.keys() - step.hyper.keys():  # the optimizer leaves it where it is
            direction[name] = torch.zeros_like(direction[name])
        about = (objective, window.examined)
        guards.examine_gradients(*about, theta, [step], validation, DIFFERENCES)
        eps = self.radius / (norm(direction) + 1e-12)
        omega = {name: leaf.detach().requires_grad_() for name, leaf in window.omega.items()}
        recorded = step.snapshot

        def teacher_gradient(amount: float) -> dict[str, torch.Tensor]:
            moved = tree_map(lambda leaf, d: torch.add(leaf, d, alpha=amount), theta, direction)
            with torch.no_grad():
                snapshot = objective.replay(moved, step)
            with torch.enable_grad():
                weights = objective.weights(omega, recorded) if objective.held else None
                return gradients(objective.value(omega, snapshot, weights, recorded), omega)

        high, low = teacher_gradient(eps), teacher_gradient(-eps)
        found = tree_map(lambda a, b: (b - a) / (2 * eps), high, low)
        return MetaGradient(objective.ranks.summed(found, "teacher"), None)
