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

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from deepteach.core.derivatives.linearised import Linearised
from deepteach.core.objective import Objective
from deepteach.core.record import Step
from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError
from deepteach.tree import Params, norm, tree_map

LONGEST_WINDOW = 2
"""Steps in a window."""


@dataclass
class FiniteDifferences:
    """The derivatives of an objective with held features by forward differences."""

    objective: Objective

    def __post_init__(self) -> None:
        if not self.objective.held:
            raise ConfigError(
                "finite differences freeze the weights, which through_weights does not allow: "
                "use derivatives='exact'"
            )

    def linearised(self, theta: Params, step: Step, omega: Params) -> Linearised:
        """g at `theta`, without a graph; `pull_back` takes one more gradient."""
        return self._differenced(
            self.objective.linearised(theta, step, omega, first_order=True), step
        )

    def linearise(self, theta: Params, snapshot: Snapshot, omega: Params, step: Step) -> Linearised:
        """As `linearised`, from a pass at hand whose graph begins at `theta`."""
        return self._differenced(
            self.objective.linearise(theta, snapshot, omega, step, first_order=True), step
        )

    def _differenced(self, plain: Linearised, step: Step) -> Linearised:
        own = {field.name: getattr(plain, field.name) for field in fields(Linearised)}
        return Differenced(**own, source=self, step=step)

    def directional(self, theta: Params, step: Step, along: Params) -> tuple[Tensor, Tensor]:
        """(l(theta + s along), moved): the losses beside those at `theta`, and the quotient.

        What is recorded stands for `theta` where the step's own state was kept; a recovered
        state is a rounding away from it, which 1/s would magnify.
        """
        with torch.no_grad():
            kept = step.state is not None
            base = step.snapshot if kept else self.objective.replay(theta, step)
            start = step.state.theta if step.state is not None else theta
            start, along = self.objective.gathered(start), self.objective.gathered(along)
            further, size = further_along(start, along)
            ahead = self.objective.replay(further, step)
        if self.objective.teacher.shapes_loss:
            return ahead.losses, (ahead.logits - base.logits) / size
        return ahead.losses, (ahead.losses - base.losses) / size


@dataclass
class Differenced(Linearised):
    """g at one step; its derivatives by differences."""

    source: FiniteDifferences
    step: Step

    def products(self, along: Params) -> tuple[Params, Tensor]:
        objective = self.source.objective
        further, size = further_along(self.theta, along)
        ahead = objective.linearised(further, self.step, self.omega, first_order=True)
        curvature = tree_map(lambda a, b: (a - b) / size, ahead.gradient, self.gradient)
        if objective.teacher.shapes_loss:
            return curvature, (ahead.logits - self.logits) / size
        return curvature, (ahead.losses - self.losses) / size

    def moved(self, along: Params) -> Tensor:
        return self.source.directional(self.theta, self.step, along)[1]


def further_along(theta: Params, along: Params) -> tuple[Params, float]:
    """(theta + s along, s)."""
    eps = max(torch.finfo(leaf.dtype).eps for leaf in theta.values())
    size = eps ** (2 / 5) / max(norm(along), 1e-300)
    moved = {n: torch.add(leaf.detach(), along[n], alpha=size) for n, leaf in theta.items()}
    return moved, size
