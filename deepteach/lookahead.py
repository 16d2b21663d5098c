"""Teaching before the step: one virtual plain-SGD step on the batch about to be used."""

from __future__ import annotations

import torch

from deepteach.adjoint import AbstractAdjoint, MetaGradient, Window
from deepteach.objective import Validation
from deepteach.rules import State


class Lookahead(AbstractAdjoint):
    """The one-step meta-gradient of Meta-Weight-Net (Shu et al., NeurIPS 2019).

    theta^ = theta - eta grad L_w(theta) is a virtual step, without momentum and weight
    decay, from the present parameters on the last recorded batch. The teacher descends the
    validation loss at theta^; the batch is then weighted by the updated teacher. Exactly,
    and without a second-order graph,

        d_omega = -grad_omega sum_k u_k <eta grad L_valid(theta^), grad l_k(theta)>
    """

    before_step = True

    def keep(self, state: State, opens_window: bool) -> State | None:
        return None

    def gradient(self, window: Window, validation: Validation) -> MetaGradient:
        step, objective, theta = window.steps[-1], window.objective, window.final.theta
        rate = {name: step.hyper[name].lr if name in step.hyper else 0.0 for name in theta}
        gradient = objective.linearised(theta, step, window.omega, first_order=True).gradient
        virtual = {
            name: torch.add(leaf, gradient[name], alpha=-rate[name]) for name, leaf in theta.items()
        }
        d_theta = validation.gradient(virtual)
        along = {name: leaf * -rate[name] for name, leaf in d_theta.items()}
        return MetaGradient(self.teacher_part(theta, step, window, along), None)
