"""The one objective: L(theta, omega) = sum_k u_k l_k + lambda R, u = w / sum w.

This file owns the normalisation. The forward step, the reversal and every derivative call
it, so they cannot disagree on a factor 1/n (the paper's Algorithm 1 and Eq. 2 do). The
regulariser lambda R is the optimizer's own weight decay and belongs to `rules`.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call

from deepteach.core.double_backward import TwiceDifferentiable
from deepteach.core.linearised import Linearised, _refuse_cut, gradients
from deepteach.core.losses import SampleLoss, ValidationLoss, normalise
from deepteach.core.record import Step
from deepteach.core.snapshot import Clock, Snapshot
from deepteach.core.student import Inputs, Outputs, Student
from deepteach.core.teacher import AbstractTeacher
from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError, NumericError
from deepteach.rng import replayed
from deepteach.tree import Params, all_finite


@dataclass
class Objective:
    """Student, teacher and loss as one differentiable function of (theta, omega).

    With `through_weights` the weights depend on theta through the features and their
    derivative is taken ("deeper interactions"); without it the features are constants.
    Where neither that holds nor the teacher shapes the loss itself, L is linear in the
    weights given the features, which the derivatives below exploit.

    On several ranks a batch is spread over them. The normaliser is that of the whole batch;
    values and gradients are this rank's part, and L and its gradient the sums of the parts.
    """

    student: Student
    teacher: AbstractTeacher
    loss: SampleLoss
    through_weights: bool
    forward_mode: bool = True
    examined: bool = False
    ranks: Ranks = field(default_factory=Ranks)

    def sample_losses(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """`(batch,)` losses; refuses a loss that already averages."""
        losses = self.loss(outputs.logits, labels)
        if losses.shape != labels.shape[:1]:
            raise ConfigError(
                f"loss must return one value per sample, shape ({len(labels)},), got "
                f"{tuple(losses.shape)}: use reduction='none'"
            )
        return losses

    def snapshot(self, outputs: Outputs, labels: Tensor, clock: Clock) -> Snapshot:
        losses = self.sample_losses(outputs, labels)
        return Snapshot(outputs.internal, outputs.logits, labels, losses, clock)

    @property
    def through(self) -> bool:
        return self.through_weights or self.teacher.through

    @property
    def linear(self) -> bool:
        """omega enters only through weights that are constant in theta."""
        return not (self.through or self.teacher.shapes_loss)

    def weights(self, omega: Params, snapshot: Snapshot) -> Tensor:
        """u(omega) of a batch, `(batch,)`; features detached unless `through`."""
        if self.teacher.shapes_loss:
            return torch.full_like(snapshot.losses, 1 / self.ranks.size(len(snapshot.losses)))
        seen = snapshot if self.through else snapshot.detach()
        log_weights = functional_call(self.teacher, omega, (seen,))
        if self.ranks.count > 1:
            shares, count = self.ranks.shares(log_weights)
            raw = shares if self.teacher.normalised else log_weights.exp() / count
            return raw.to(seen.losses.dtype)
        if self.teacher.normalised:
            return normalise(log_weights).to(seen.losses.dtype)
        return (log_weights.exp() / len(log_weights)).to(seen.losses.dtype)

    def value(self, omega: Params, snapshot: Snapshot, weights: Tensor | None = None) -> Tensor:
        """L without lambda R, a scalar; `weights` are those of `snapshot` if known already."""
        if self.teacher.shapes_loss:
            shaped = functional_call(self.teacher, omega, (snapshot,))
            if self.ranks.count > 1:
                return shaped.sum() / self.ranks.size(len(shaped))
            return shaped.mean()
        return (self.weights(omega, snapshot) if weights is None else weights) @ snapshot.losses

    def replay(self, theta: Params, step: Step) -> Snapshot:
        """The recorded pass at `theta`: same batch, modes, buffers and random draws."""
        with replayed(step.generators), self.student.in_modes(step.modes):
            outputs = self.student.functional(theta, step.buffers, step.inputs)
        return self.snapshot(outputs, step.labels, step.snapshot.clock)

    def linearised(
        self, theta: Params, step: Step, omega: Params, *, first_order: bool = False
    ) -> Linearised:
        """g = grad_theta L at `theta`, with the graph for its derivatives unless first order."""
        theta = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        with torch.enable_grad():
            with nullcontext() if first_order else TwiceDifferentiable():
                snapshot = self.replay(theta, step)
            weights = step.weights if self.linear else None
            return self.linearise(theta, snapshot, omega, weights, first_order=first_order)

    def linearise(
        self,
        theta: Params,
        snapshot: Snapshot,
        omega: Params,
        weights: Tensor | None = None,
        *,
        first_order: bool = False,
    ) -> Linearised:
        """As `linearised`, from a pass at hand whose graph begins at `theta`.

        `weights` are the normalised weights of a linear objective; computed if not given.
        """
        if self.linear:
            used = self.weights(omega, snapshot) if weights is None else weights
            used = used.detach().requires_grad_()
            value = self.value(omega, snapshot, used)
        else:
            used = torch.zeros(0)
            omega = {name: leaf.detach().requires_grad_() for name, leaf in omega.items()}
            value = self.value(omega, snapshot)
        found = torch.autograd.grad(
            value, list(theta.values()), create_graph=not first_order, allow_unused=True
        )
        if not first_order and not self.examined:
            _refuse_cut(found)
            self.examined = True
        pairs = list(zip(theta.items(), found, strict=True))
        gradient = {n: torch.zeros_like(leaf) if g is None else g for (n, leaf), g in pairs}
        return Linearised(
            theta=theta,
            omega=omega,
            weights=used,
            gradient=gradient,
            losses=snapshot.losses.detach(),
            value=value.detach(),
            used=frozenset(name for (name, _), g in pairs if g is not None),
        )

    def directional(self, theta: Params, step: Step, along: Params) -> tuple[Tensor, Tensor]:
        """(l, J along): losses `(batch,)` and their derivative in a direction of theta.

        First-order forward mode, both detached. Raises NotImplementedError where an
        operator has no forward rule; the caller then takes `linearised`.
        """
        with torch.no_grad(), forward_ad.dual_level():
            dual = {
                name: forward_ad.make_dual(leaf.detach(), along[name])
                for name, leaf in theta.items()
            }
            losses, tangent = forward_ad.unpack_dual(self.replay(dual, step).losses)
        return losses, torch.zeros_like(losses) if tangent is None else tangent

    def teacher_gradient(self, omega: Params, step: Step, slopes: Tensor) -> Params:
        """grad_omega of u(omega) . slopes, with the features recorded at that step.

        `slopes` are the per-sample J dv `(batch,)`. The student is not differentiated: its
        weights enter g linearly, so only the small teacher is.
        """
        omega = {name: leaf.detach().requires_grad_() for name, leaf in omega.items()}
        with torch.enable_grad():
            value = self.weights(omega, step.snapshot.detach()) @ slopes
            return gradients(value, omega)


class Validation:
    """M on one trusted batch: its gradient at any theta, and what the pass showed.

    The module runs in the mode that it is in, on cloned buffers; random draws are undone.
    Every rank computes all of it, with the same draws: that moves nothing.
    """

    def __init__(
        self, objective: Objective, loss: ValidationLoss, inputs: Inputs, labels: Tensor
    ) -> None:
        self._objective, self._loss = objective, loss
        self._inputs, self._labels = inputs, labels
        self.loss = math.nan
        self.outputs: Outputs | None = None

    def gradient(self, theta: Params) -> Params:
        """dM/dtheta at `theta`; leaves `loss` and `outputs` of that pass behind."""
        student = self._objective.student
        theta = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        with torch.enable_grad(), replayed(None):
            self._objective.ranks.same_draws()
            outputs = student.functional(theta, student.buffers(), self._inputs)
            value = self._scalar(outputs.logits, self._labels)
            gradient = gradients(value, theta)
        self.loss = float(value.detach())
        self.outputs = Outputs(outputs.logits.detach(), outputs.internal.detach())
        self._check_finite(gradient)
        return gradient

    def _scalar(self, logits: Tensor, labels: Tensor) -> Tensor:
        value = self._loss(logits, labels)
        if value.dim() != 0:
            raise ConfigError(
                f"validation_loss must return a scalar, got shape {tuple(value.shape)}"
            )
        return value

    def _check_finite(self, gradient: Params) -> None:
        sound = math.isfinite(self.loss) and all_finite(gradient.values())
        if self._objective.ranks.any(not sound):
            raise NumericError(
                "the validation loss or its gradient is not finite; nothing was changed: "
                "check the trusted samples, or lower the student's learning rate"
            )

    def snapshot(self, clock: Clock) -> Snapshot:
        """The trusted batch as the teacher's features may fit on it."""
        assert self.outputs is not None
        return self._objective.snapshot(self.outputs, self._labels, clock)

    def accuracy(self) -> float | None:
        """Share of right predictions, where labels are class indices."""
        assert self.outputs is not None
        if self._labels.is_floating_point() or self._labels.dim() != 1:
            return None
        return float((self.outputs.logits.argmax(1) == self._labels).float().mean())
