"""One update of the teacher: from a meta-gradient to a step of its optimizer, and its record."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import CollapseWarning, ConfigError
from deepteach.tree import Params

COLLAPSED_FRACTION = 0.02
"""Below this effective sample fraction a batch teaches (almost) nothing."""

UNFITTED = "its features had not seen trusted samples in this window"
"""Why a teacher was fitted and not stepped: its gradient would be rounding."""

ROUNDING = "its gradient is no more than the rounding of what it is summed from"
"""Why a teacher was not stepped: Adam would make a whole step of it."""


@dataclass(frozen=True)
class UpdateRecord:
    """One update of the teacher.

    Args:
        step: optimizer steps of the student before it.
        validation_loss: of the trusted batch, before the update.
        validation_accuracy: of the same batch, in [0, 1]; None where labels are no classes.
        gradient_norm: Euclidean norm of the meta-gradient over all parameters of the teacher.
        effective_sample_size: (sum w)^2 / (n sum w^2), the mean over the steps since the last
            update: a fraction of the batch, 1 for equal weights.
        drift: relative distance of the recovered from the true start of the window; None
            where the adjoint recovers nothing.
        skipped: why the teacher was not stepped; None where it was.
    """

    step: int
    validation_loss: float
    validation_accuracy: float | None
    gradient_norm: float
    effective_sample_size: float
    drift: float | None
    skipped: str | None = None


def refuse_unable(taught: Sequence[Tensor], optimizer: torch.optim.Optimizer | None) -> None:
    """Raises ConfigError: a teacher's optimizer that cannot move what is `taught` of it."""
    if optimizer is None or not taught:
        return
    held = {id(leaf) for group in optimizer.param_groups for leaf in group["params"]}
    if held.isdisjoint(map(id, taught)):
        raise ConfigError(
            "teacher_optimizer holds none of the teacher's parameters, so that it would never be "
            "taught: make it of teacher.parameters()"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            f"{type(optimizer).__name__} steps by a closure, and an update has one gradient: use "
            "another teacher_optimizer, e.g. torch.optim.Adam"
        )


def descend(
    teacher: AbstractTeacher, optimizer: torch.optim.Optimizer | None, gradient: Params
) -> None:
    """One step of the teacher's optimizer along `gradient`, by parameter name."""
    if optimizer is None:
        return
    for name, leaf in teacher.named_parameters():
        if leaf.requires_grad:
            leaf.grad = gradient[name].to(leaf.dtype)
    optimizer.step()
    optimizer.zero_grad()


def warn_of_collapse(effective: float, taken: int) -> None:
    """Warn where `taken` steps rested on almost no samples."""
    if taken > 0 and effective < COLLAPSED_FRACTION:
        warnings.warn(
            f"the weights rest on {effective:.1%} of a batch: the teacher has collapsed; "
            "lower its learning rate, or give its optimizer a weight decay",
            CollapseWarning,
            stacklevel=5,
        )
