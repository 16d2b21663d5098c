"""From recorded steps to the meta-gradient: the window, and the check that omega stood still."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from deepteach.core.adjoint.base import AbstractAdjoint, MetaGradient, Window
from deepteach.core.checks.examination import Examined
from deepteach.core.module_state import buffers_kept
from deepteach.core.objective import Objective
from deepteach.core.optim import Hyper
from deepteach.core.record import Step
from deepteach.core.recorder import Recorder
from deepteach.core.validation import Validation
from deepteach.errors import ConfigError, ReplayError
from deepteach.tree import Params

_ASKED = 8
"""Times that a teacher whose weights do not come out again is asked whether it draws them."""


@dataclass(frozen=True)
class LookBack:
    """The derivative of a trusted batch's loss with respect to the teacher."""

    objective: Objective
    recorder: Recorder
    adjoint: AbstractAdjoint
    examined: Examined = field(default_factory=Examined)

    def check(self, hyper: list[Hyper], window: int, dtypes: set[torch.dtype]) -> None:
        """Refuse, before anything runs, what the adjoint cannot do exactly."""
        self.adjoint.derived(self.objective)
        if self.objective.student.shards.split and not self.adjoint.splits:
            raise ConfigError(
                f"{type(self.adjoint).__name__} needs parameters that are whole on every rank, not "
                "sharded ones (fully_shard): use adjoint=Stored(), Checkpointed() or Reversed()"
            )
        for name, leaf in self.recorder.parameters().items():
            if leaf.is_complex():
                raise ConfigError(
                    f"the parameter {name!r} is complex: hold it as real numbers (..., 2), and use "
                    "torch.view_as_complex of it in forward, which is exact"
                )
        for dtype in dtypes:
            self.adjoint.check(self.recorder.rule, hyper, window, dtype)

    def __call__(
        self,
        steps: list[Step],
        validation: Validation,
        window: int,
        adjoint: AbstractAdjoint | None = None,
    ) -> MetaGradient:
        """Over the last `window` of `steps`, by the coach's adjoint unless another is given.

        What the teacher's passes leave in its running statistics is undone; an adjoint may move
        its other buffers.

        Raises:
            ConfigError: the teacher changed inside the window.
            NumericError: something is not finite, or a step could not be replayed.
        """
        with buffers_kept(self.objective.teacher, statistics_alone=True):
            return self._crossed(steps, validation, window, adjoint)

    def _crossed(
        self,
        steps: list[Step],
        validation: Validation,
        window: int,
        adjoint: AbstractAdjoint | None,
    ) -> MetaGradient:
        recorder, omega = self.recorder, self.objective.omega
        for step in steps[-window:]:
            if step.wrong is not None:
                raise ReplayError(step.wrong)
        objective = self.objective
        # A sweep that holds what the teacher reads finds most of the weights once more itself.
        crossing = adjoint or self.adjoint
        shaped = objective.teacher.shapes_loss
        finds = crossing.reweighs and objective.held and not shaped
        for step in () if finds else steps:
            if step.hyper:
                self._check_unchanged(omega, step)
        seen = Window(
            steps,
            recorder.state(),
            self.objective,
            recorder.rule,
            omega,
            start=max(0, len(steps) - window),
            held=recorder.held(),
            # Graphs are differentiated once, by the adjoint that they were made for.
            graphs=recorder.graphs.take(steps) if adjoint is None else {},
            examined=self.examined,
        )
        objective.confirmed.clear()
        found = crossing.gradient(seen, validation)
        confirmed = {id(step.snapshot) for step in objective.confirmed}
        for step in steps if finds else ():
            if step.hyper and id(step.snapshot) not in confirmed:
                self._check_unchanged(omega, step)
        objective.confirmed.clear()
        return found

    def _check_unchanged(self, omega: Params, step: Step) -> None:
        """omega is constant inside a window, so the recorded weights must come out again."""
        again = self.objective.weights(omega, step.snapshot)
        value = self.objective.value(omega, step.snapshot, again)
        if torch.equal(again, step.weights) and torch.equal(value, step.value):
            return
        slack = 1e-4 if again.dtype != torch.float64 else 1e-10
        same = torch.allclose(again, step.weights, rtol=slack, atol=0.01 * slack)
        if not (same and torch.allclose(value, step.value, rtol=slack, atol=slack)):
            others = (self.objective.weights(omega, step.snapshot) for _ in range(_ASKED))
            if not all(torch.equal(other, again) for other in others):
                raise ConfigError(
                    f"{type(self.objective.teacher).__name__} gives other weights each time "
                    "(dropout in train mode?), so that those of a recorded step do not come out "
                    "again: call teacher.eval(), or let it draw nothing"
                )
            raise ConfigError(
                "the teacher changed after a step of the window was recorded, so that step no "
                "longer belongs to it: change the teacher right after coach.update only"
            )
