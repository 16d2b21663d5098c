"""Plain automatic differentiation through the window: the oracle of the other adjoints."""

from __future__ import annotations

import torch

from deepteach.core.adjoint import guards
from deepteach.core.adjoint.base import MetaGradient, Window, kept
from deepteach.core.adjoint.moved_buffers import MovedBuffers
from deepteach.core.adjoint.stored import Stored
from deepteach.core.derivatives.linearised import gradients
from deepteach.core.derivatives.running_statistics import RunningStatistics
from deepteach.core.derivatives.second_derivatives import Corrected
from deepteach.core.optim import State
from deepteach.tree import Params, dot


class Unrolled(Stored):
    """Plain automatic differentiation through the window: slow, and the oracle of the rest.

    Memory: B states and the second-order graph of all B steps.
    """

    shares = False
    hands_over = False
    reweighs = False
    forwards = False
    splits = False

    def swept(self, window: Window, d_theta: Params, moved: MovedBuffers) -> MetaGradient:
        objective, rule, ranks = window.objective, window.rule, window.objective.ranks
        steps = window.steps[window.start :]
        buffers = moved.cotangent
        statistics = RunningStatistics(steps[0].passes[0].buffers)
        omega = {name: leaf.detach().requires_grad_() for name, leaf in window.omega.items()}
        state = kept(window.steps[window.start])
        with torch.enable_grad():
            start = state.theta
            theta = {name: leaf.detach().requires_grad_() for name, leaf in start.items()}
            state = State(theta, state.slots)
            for step in steps:
                with Corrected():
                    snapshot = objective.replay(state.theta, step)
                recorded = objective.weights(omega, step.snapshot) if objective.held else None
                value = objective.value(omega, snapshot, recorded, step.snapshot)
                gradient = gradients(value, state.theta, create_graph=True)
                gradient = ranks.summed(gradient, "replays")
                if buffers:
                    statistics.follow(objective.student, state.theta, step)
                state = rule.step(state, gradient, step.hyper)
            led = {name: leaf for name, leaf in state.theta.items() if leaf.requires_grad}
            end = torch.stack([(led[name] * d_theta[name]).sum() for name in led]).sum()
            if buffers:
                reached = {name: statistics.values[name] for name in buffers}
                moved.compare(reached, len(steps) - 1)
                end = end + dot(reached, buffers)
            # Every rank has this end, and the end is the sum of what ranks have.
            d_omega = gradients(end / ranks.count, omega)
            d_omega = ranks.summed(d_omega, "teacher")
        gap = guards.Gap(state.theta, window.final.theta)
        guards.check_movement(start, gap, self.allowed(start))
        return MetaGradient(d_omega, gap.drift)
