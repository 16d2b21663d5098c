"""Finite differences along dv in the place of second derivatives: cheaper, approximate.

    H dv ~ (g(theta + s dv) - g(theta)) / s
    J dv ~ (l(theta + s dv) - l(theta)) / s

with the weights and features frozen. g(theta) and l(theta) were found in training where the
step was recorded with its state, so one gradient, or one forward pass, is all that is added.
s |dv| = eps^(2/5): truncation grows with s and rounding with eps / s. (A step in proportion
to |theta| is far too long for networks with batch normalisation, whose loss turns within a
fraction of their norm.) Networks with kinks leave no step that is good enough to be crossed
twice, so the window is limited to two steps, of which one needs H dv. LOG.md has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepteach.core.linearised import Linearised
from deepteach.core.objective import Objective
from deepteach.core.record import Step
from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError
from deepteach.tree import Params, norm, tree_map

LONGEST_WINDOW = 2
"""Steps in a window."""


@dataclass
class FiniteDifferences:
    """The derivatives of a linear objective by forward differences."""

    objective: Objective

    def __post_init__(self) -> None:
        if not self.objective.linear:
            raise ConfigError(
                "finite differences freeze the weights, which through_weights and loss-shaping "
                "teachers do not allow: use derivatives='exact'"
            )

    def linearised(self, theta: Params, step: Step, omega: Params) -> Linearised:
        """g at `theta`, without a graph; `pull_back` takes one more gradient."""
        plain = self.objective.linearised(theta, step, omega, first_order=True)
        return Differenced(**vars(plain))

    def linearise(
        self, theta: Params, snapshot: Snapshot, omega: Params, weights: Tensor
    ) -> Linearised:
        """As `linearised`, from a pass at hand whose graph begins at `theta`."""
        plain = self.objective.linearise(theta, snapshot, omega, weights, first_order=True)
        return Differenced(**vars(plain))

    def directional(self, theta: Params, step: Step, along: Params) -> tuple[Tensor, Tensor]:
        """(l(theta + s along), J along): the losses beside those at `theta`, and the quotient.

        The losses at `theta` are the recorded ones where the step's own state was kept; a
        recovered state is a rounding away from it, which 1/s would magnify.
        """
        with torch.no_grad():
            kept = step.state is not None
            base = step.snapshot.losses if kept else self.objective.replay(theta, step).losses
            start = step.state.theta if step.state is not None else theta
            moved, size = _ahead(start, along)
            losses = self.objective.replay(moved, step).losses
        return losses, (losses - base) / size


@dataclass
class Differenced(Linearised):
    """g at one step; its derivatives by differences."""

    def pull_back(self, along: Params, objective: Objective, step: Step) -> tuple[Params, Params]:
        moved, size = _ahead(self.theta, along)
        ahead = objective.linearised(moved, step, self.omega, first_order=True)
        curvature = tree_map(lambda a, b: (a - b) / size, ahead.gradient, self.gradient)
        slopes = (ahead.losses - self.losses) / size
        return curvature, objective.teacher_gradient(self.omega, step, slopes)

    def pull_back_teacher(self, along: Params, objective: Objective, step: Step) -> Params:
        slopes = FiniteDifferences(objective).directional(self.theta, step, along)[1]
        return objective.teacher_gradient(self.omega, step, slopes)


def _ahead(theta: Params, along: Params) -> tuple[Params, float]:
    """(theta + s along, s)."""
    eps = max(torch.finfo(leaf.dtype).eps for leaf in theta.values())
    size = eps ** (2 / 5) / max(norm(along), 1e-300)
    moved = {n: torch.add(leaf.detach(), along[n], alpha=size) for n, leaf in theta.items()}
    return moved, size
