"""Finite differences along dv in the place of second derivatives: cheaper, approximate.

    H dv ~ (g(theta + s dv) - g(theta - s dv)) / 2s
    J dv ~ (l(theta + s dv) - l(theta - s dv)) / 2s

with the weights and features frozen, and s |dv| = eps^(1/4): the truncation of a central
difference grows with s^2, its rounding with eps / s. (A step in proportion to |theta| is
far too long for networks with batch normalisation, whose loss turns within a fraction of
their norm.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepteach.errors import ConfigError
from deepteach.objective import Linearised, Objective, Step
from deepteach.tree import Params, norm, tree_map


@dataclass
class FiniteDifferences:
    """The derivatives of a linear objective by central differences."""

    objective: Objective

    def __post_init__(self) -> None:
        if not self.objective.linear:
            raise ConfigError(
                "finite differences freeze the weights, which through_weights and loss-shaping "
                "teachers do not allow: use derivatives='exact'"
            )

    def linearised(self, theta: Params, step: Step, omega: Params) -> Linearised:
        """g at `theta`, without a graph; `pull_back` takes two more gradients."""
        plain = self.objective.linearised(theta, step, omega, first_order=True)
        return Differenced(**vars(plain))

    def directional(self, theta: Params, step: Step, along: Params) -> tuple[Tensor, Tensor]:
        """(l, J along) from the losses at two points; l is their mean, right to O(s^2)."""
        plus, minus, size = _points(theta, along)
        with torch.no_grad():
            ahead = self.objective.replay(plus, step).losses
            behind = self.objective.replay(minus, step).losses
        return (ahead + behind) / 2, (ahead - behind) / (2 * size)


@dataclass
class Differenced(Linearised):
    """g at one step; its derivatives by differences."""

    def pull_back(self, along: Params, objective: Objective, step: Step) -> tuple[Params, Params]:
        plus, minus, size = _points(self.theta, along)
        ahead = objective.linearised(plus, step, self.omega, first_order=True)
        behind = objective.linearised(minus, step, self.omega, first_order=True)
        curvature = tree_map(lambda a, b: (a - b) / (2 * size), ahead.gradient, behind.gradient)
        slopes = (ahead.losses - behind.losses) / (2 * size)
        return curvature, objective.teacher_gradient(self.omega, step, slopes)

    def pull_back_teacher(self, along: Params, objective: Objective, step: Step) -> Params:
        slopes = FiniteDifferences(objective).directional(self.theta, step, along)[1]
        return objective.teacher_gradient(self.omega, step, slopes)


def _points(theta: Params, along: Params) -> tuple[Params, Params, float]:
    eps = max(torch.finfo(leaf.dtype).eps for leaf in theta.values())
    size = eps ** (1 / 4) / max(norm(along), 1e-300)
    plus = {name: torch.add(leaf.detach(), along[name], alpha=size) for name, leaf in theta.items()}
    minus = {
        name: torch.add(leaf.detach(), along[name], alpha=-size) for name, leaf in theta.items()
    }
    return plus, minus, size
