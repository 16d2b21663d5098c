"""Gradients of several passes, one step: the weights' normaliser spans all of them.

The `log_mass` of a part is log sum w m, m the masses of its samples (log sum m where weights are
not normalised). A part's loss is normalised by its own; when its backward() begins, what the
earlier parts left in the gradients is rescaled, so that after every part the gradients are those
of the parts so far as one batch. Clipping and stepping then see what they would see of the whole
batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.objective import Objective
from deepteach.core.record import Step
from deepteach.errors import ConfigError
from deepteach.tree import Params


def refuse_accumulation(objective: Objective, adjoint: AbstractAdjoint) -> None:
    """Raises ConfigError: what ties the samples of a step together beyond their weights' sum."""
    teacher = type(objective.teacher).__name__
    if not objective.held:
        raise ConfigError("accumulate needs constant weights: drop it, or through_weights")
    if not objective.teacher.per_sample:
        raise ConfigError(f"accumulate splits a batch, which {teacher} weighs as one: drop it")
    if adjoint.before_step:
        raise ConfigError(f"{type(adjoint).__name__} teaches before a batch: drop accumulate")
    if objective.ranks.count > 1:
        raise ConfigError("accumulate works in one process: use larger batches on the ranks")


@dataclass
class Accumulation:
    """The parts of the step that is being prepared, with the `log_mass` of each."""

    parts: list[Step] = field(default_factory=list)
    log_masses: list[float] = field(default_factory=list)

    def add(self, step: Step, log_mass: float) -> None:
        """A part whose gradients have arrived."""
        self.parts.append(step)
        self.log_masses.append(log_mass)

    def last(self) -> tuple[Step | None, float]:
        """Take the last part off, with its `log_mass`; none where there is none."""
        return (self.parts.pop(), self.log_masses.pop()) if self.parts else (None, 0.0)

    def clear(self) -> None:
        """The step was taken, or dropped."""
        self.parts.clear()
        self.log_masses.clear()

    @torch.no_grad()
    def make_room(self, log_mass: float, parameters: Params) -> float:
        """Rescale the gradients so far for a part of this `log_mass`; its own share."""
        if not self.log_masses:
            return 1.0
        before = _log_sum(self.log_masses)
        after = _log_sum([before, log_mass])
        for leaf in parameters.values():
            if leaf.grad is not None:
                leaf.grad.mul_(math.exp(before - after))
        return math.exp(log_mass - after)

    def whole(self, last: Step, log_mass: float, objective: Objective) -> Step:
        """All parts and the last as one step.

        Raises:
            ConfigError: they are sequences of several lengths, which the teacher weighs otherwise
                where they are filled up to one.
        """
        if not self.parts:
            return last
        steps, log_masses = [*self.parts, last], [*self.log_masses, log_mass]
        total = _log_sum(log_masses)
        shares = [math.exp(own - total) for own in log_masses]
        first, *others = (step.snapshot for step in steps)
        step = Step(
            passes=tuple(part for step in steps for part in step.passes),
            snapshot=first.followed_by(*others),
            weights=torch.cat([s * step.weights for s, step in zip(shares, steps, strict=True)]),
            value=_dot(shares, [step.value for step in steps]),
            hyper=last.hyper,
            state=self.parts[0].state,
        )
        lengths = {(seen.logits.shape[1:], seen.internal.shape[1:]) for seen in (first, *others)}
        if len(lengths) > 1:
            _refuse_filled(objective, step)
        return step


@torch.no_grad()
def _refuse_filled(objective: Objective, step: Step) -> None:
    again = objective.weights(objective.omega, step.snapshot)
    if objective.teacher.shapes_loss or not torch.allclose(again, step.weights, rtol=1e-4):
        raise ConfigError(
            f"{type(objective.teacher).__name__} reads more of sequences than what was pooled of "
            "them, and the batches of this step have several lengths: pad all to one length, as "
            "padding='max_length' does"
        )


def _log_sum(logs: list[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs))


def _dot(shares: list[float], values: list[Tensor]) -> Tensor:
    return torch.stack([s * v for s, v in zip(shares, values, strict=True)]).sum()
