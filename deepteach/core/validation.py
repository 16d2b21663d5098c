"""M: the loss of a trusted batch, its gradient at any theta, and what its pass showed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepteach.core.accuracy import told_accuracy
from deepteach.core.derivatives.linearised import gradients
from deepteach.core.derivatives.plain_kernels import uncompiled
from deepteach.core.losses import ValidationLoss, trusted_labels_read
from deepteach.core.objective import Objective
from deepteach.core.snapshot import Clock, Snapshot
from deepteach.core.student import Inputs, Outputs
from deepteach.errors import ConfigError, NumericError
from deepteach.rng import replayed, untouched
from deepteach.tree import Params, all_finite, first_apart


class Validation:
    """M on one trusted batch: its gradient at any theta, and what the pass showed.

    The module runs in the mode that it is in, on cloned buffers; random draws are undone.
    Every rank computes all of it, with the same draws: that moves nothing.
    """

    def __init__(
        self, objective: Objective, loss: ValidationLoss, inputs: Inputs, labels: Tensor
    ) -> None:
        self._objective, self._loss = objective, loss
        self.inputs, self.labels = inputs, labels
        self.loss = math.nan
        self.outputs: Outputs | None = None

    def gradient(self, theta: Params) -> Params:
        """dM/dtheta at `theta`; leaves `loss` and `outputs` of that pass behind."""
        student = self._objective.student
        used = student.shards.copies(theta)
        with torch.enable_grad(), untouched():
            self._objective.ranks.same_draws()
            outputs = student.functional(used, student.buffers(), self.inputs)
            value = self._scalar(outputs.logits, self.labels)
            gradient = student.shards.cut(gradients(value, used))
        self.loss = float(value.detach())
        self.outputs = Outputs(outputs.logits.detach(), outputs.internal.detach())
        self._check_finite(gradient)
        refuse_written(theta, student.shards.cut(used))
        return gradient

    def value(self, theta: Params, buffers: Params) -> Tensor:
        """M of a pass that is given these very buffers, and writes to them."""
        with replayed(None):
            self._objective.ranks.same_draws()
            student = self._objective.student
            outputs = student.functional(theta, buffers, self.inputs, update=True)
            with uncompiled():
                return self._loss(outputs.logits, self.labels)

    def at(self, theta: Params, buffers: Params, inputs: Inputs, labels: Tensor) -> Tensor:
        """M of a pass of other samples, with the same random draws each time."""
        with replayed(None):
            outputs = self._objective.student.functional(theta, buffers, inputs)
            return self._scalar(outputs.logits, labels)

    def _scalar(self, logits: Tensor, labels: Tensor) -> Tensor:
        with uncompiled():
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
        """The trusted batch as the teacher's features may fit on it.

        Raises:
            ConfigError: the student's own loss does not take its labels.
        """
        assert self.outputs is not None
        remedy = "let it take those labels too, or leave such features out"
        with untouched(), trusted_labels_read("whose losses features are fitted on", remedy):
            return self._objective.snapshot(self.outputs, self.labels, clock)

    def accuracy(self) -> float | None:
        """Share of right predictions; None where what is right is not known (`told_accuracy`)."""
        assert self.outputs is not None
        with untouched():
            return told_accuracy(self.outputs.logits, self.labels, self._objective.loss)


def refuse_written(before: Params, after: Params) -> None:
    """Refuse a pass that has written to the parameters. Raises ConfigError."""
    written = first_apart(before, after)
    if written is not None:
        raise ConfigError(written_to(written))


def written_to(name: str) -> str:
    """What is said of a pass that writes to a parameter."""
    return (
        f"a pass of the student writes to its parameter {name!r} (max_norm, a normalisation in "
        "forward), whose derivative is unknown: compute a normalised copy in forward instead, as "
        "torch.nn.utils.parametrizations do"
    )
