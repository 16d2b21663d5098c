"""M: the loss of a trusted batch, its gradient at any theta, and what its pass showed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepteach.core.accuracy import told_accuracy
from deepteach.core.linearised import gradients
from deepteach.core.losses import ValidationLoss
from deepteach.core.objective import Objective
from deepteach.core.snapshot import Clock, Snapshot
from deepteach.core.student import Inputs, Outputs
from deepteach.errors import ConfigError, NumericError
from deepteach.rng import replayed
from deepteach.tree import Params, all_finite


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

    def value(self, theta: Params, buffers: Params) -> Tensor:
        """M of a pass that is given these very buffers, and writes to them."""
        with replayed(None):
            self._objective.ranks.same_draws()
            student = self._objective.student
            outputs = student.functional(theta, buffers, self._inputs, update=True)
        return self._loss(outputs.logits, self._labels)

    def _scalar(self, logits: Tensor, labels: Tensor) -> Tensor:
        value = self._loss(logits, labels)
        if not isinstance(value, Tensor) or value.dim() != 0:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"validation_loss must return a scalar tensor, got {shape}: end it with .mean()"
            )
        if torch.is_grad_enabled() and not value.requires_grad:
            raise ConfigError(
                "validation_loss returned a value without a gradient: compute it from the logits "
                "by torch's own operations, without detach() or numpy"
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
        """Share of right predictions; None where what is right is not known (`told_accuracy`)."""
        assert self.outputs is not None
        return told_accuracy(self.outputs.logits, self._labels, self._objective.loss)
