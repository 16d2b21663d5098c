"""The trusted probe of real-valued targets: does the given target fit the internal state?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepteach.core.batches.ignored import integral
from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError
from deepteach.teachers.class_indices import described
from deepteach.teachers.fitted import Probe, adopt_shapes, refuse_width
from deepteach.teachers.ridge import ridge

TINIEST = 1e-6
"""Least scale of the residuals, in units of the target's own spread."""


class TrustedRegression(Probe):
    """How far the given target lies from what trusted samples say of the internal state.

    The sibling of `TrustedProbe` for regression. After each teacher update a ridge regression of
    the targets is fitted on the trusted states. The scale of its residuals is that of trusted
    samples left out of the fit, so a probe that knows little says little. With z the residual in
    that scale, the feature is two numbers that carry neither the student's coordinates nor the
    target's unit: the log-density -z^2/2 - log(scale / spread), the mean over outputs, up to a
    constant and in units of the target's own spread; and the largest |z|. Both are clamped.

    How well wrong targets can be told is bounded by how well right ones can be predicted: where
    the states explain a share R^2 of a Gaussian target, and a wrong target is that of another
    sample, no rule reaches a higher AUROC than (2/pi) arctan sqrt((1 + R^2) / (1 - R^2)): .67 at
    R^2 = .5, and .9 from R^2 = .95 on.

    Until it has seen trusted samples both numbers are 0, and outputs that are constant there say
    nothing; so do targets that are not finite (missing ones).

    Args:
        shrinkage: s in (0, 1); found by leaving samples out unless given.
        floor: least log-density; the largest |z| is -floor.

    Raises:
        ConfigError: a shrinkage outside (0, 1); class indices, or labels that are no tensor, when
            they are first seen; targets or states of another width than those fitted on.
    """

    offset: Tensor
    spread: Tensor
    scale: Tensor

    def __init__(self, *, shrinkage: float | None = None, floor: float = -10.0) -> None:
        super().__init__()
        if shrinkage is not None and not 0 < shrinkage < 1:
            raise ConfigError(
                f"TrustedRegression's shrinkage must lie within (0, 1), got {shrinkage}"
            )
        self.shrinkage = shrinkage
        self.floor = floor
        # Shapes are known only at the first fit; loading a state adopts the saved shapes.
        self.register_buffer("slope", torch.zeros(0, 0))
        for name in ("offset", "spread", "scale"):
            self.register_buffer(name, torch.zeros(0))
        adopt_shapes(self, ("slope", "offset", "spread", "scale"))

    def forward(self, snapshot: Snapshot) -> Tensor:
        states, targets = snapshot.internal, _targets(snapshot)
        slope, spread = self.slope, self.spread
        if slope.numel() == 0:
            return states.new_zeros(len(states), 2)
        refuse_width(states, slope, "TrustedRegression")
        if targets.shape[1] != slope.shape[1]:
            raise ConfigError(
                f"TrustedRegression was fitted on {slope.shape[1]} targets a sample and got "
                f"{targets.shape[1]}: give all batches targets of one shape"
            )
        targets = targets.to(slope.dtype)
        known = torch.isfinite(targets) & (spread > 0)
        predicted = states.to(slope.dtype) @ slope + self.offset
        unit = torch.where(spread > 0, spread, 1.0)
        scale = torch.maximum(self.scale, TINIEST * unit)
        z = (torch.where(known, targets, predicted) - predicted) / scale
        density = (-0.5 * z.square() - (scale / unit).log()).clamp(self.floor, -self.floor)
        mean = torch.where(known, density, 0.0).sum(1) / known.sum(1).clamp(min=1)
        return torch.stack([mean, z.abs().amax(1).clamp(max=-self.floor)], 1).to(states.dtype)

    def joined(self, told: Tensor) -> Tensor:
        """`(batch,)` the log-density, of the two numbers `(batch, 2)`."""
        return told[:, 0]

    def refitted(self, trusted: Snapshot) -> TrustedRegression:
        """A probe like this one, fitted on these samples alone."""
        other = TrustedRegression(shrinkage=self.shrinkage, floor=self.floor)
        other.to(trusted.internal.device)
        other.fit(trusted)
        return other

    @torch.no_grad()
    def fit(self, trusted: Snapshot) -> None:
        targets = _targets(trusted).double()
        complete = torch.isfinite(targets).all(1)
        if int(complete.sum()) < 3:
            return
        states = trusted.internal.detach().double()[complete]
        found = ridge(states, targets[complete], self.shrinkage)
        self.slope, self.offset, self.spread, self.scale = found


def _targets(snapshot: Snapshot) -> Tensor:
    """Real-valued targets, `(batch, outputs)`; integers where each is what one output predicts."""
    labels: Any = snapshot.labels
    if isinstance(labels, Tensor) and labels.dim() > 0:
        one_each = labels.numel() == snapshot.logits.numel()
        if labels.is_floating_point() or (integral(labels) and one_each):
            return labels.reshape(len(labels), -1)
    classes = isinstance(labels, Tensor) and labels.dim() == 1
    raise ConfigError(
        "TrustedRegression reads real-valued targets, (batch,) or (batch, outputs), got "
        f"{described(labels)}: use {'dt.TrustedProbe()' if classes else 'dt.Loss()'} in its place"
    )
