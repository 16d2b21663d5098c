"""M: the loss of a trusted batch, its gradient at any theta, and what its pass showed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
        """Share of right predictions, where labels are class indices of these logits.

        One logit decides between 0 and 1 at the threshold 0.
        """
        assert self.outputs is not None
        logits, labels = self.outputs.logits, self._labels
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1:
            return None
        logits = logits.unsqueeze(1) if logits.dim() == 1 else logits
        if logits.dim() != 2 or len(logits) != len(labels):
            return None
        if logits.shape[1] == 1:
            if not bool(((labels == 0) | (labels == 1)).all()):
                return None
            predicted = (logits[:, 0] > 0).to(labels.dtype)
        else:
            predicted = logits.argmax(1)
        return float((predicted == labels).float().mean())
