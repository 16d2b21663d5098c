"""Make one quantity of a training run cease to be finite, at one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from soak_bench import PER_EPOCH, Counter, timeless
from torch import Tensor

from deepteach.core import coach as coaching
from deepteach.core import look_back as looking_back
from deepteach.core import objective, validation
from deepteach.core import recorder as recording
from deepteach.errors import NumericError
from deepteach.training import loop as fit

SITES = ("data", "loss", "gradient", "weights", "validation", "meta-gradient", "student")
"""What may cease to be finite: a batch, the student's loss or gradient, the teacher's weights,
the validation loss, the teacher's gradient, the student after its step."""
VALUES = (float("nan"), float("inf"), float("-inf"))
POISONED = 3 * PER_EPOCH
"""The step that is spoilt: the last of an epoch, whose end would commit it, and one at which
the teacher is due as well (every 4 steps; see `poison`)."""


def poison(site: str, value: float, verdict: Counter) -> None:
    """Spoil one quantity from step POISONED on; tell whether the failing step changed anything.

    `verdict` 0 becomes 1 where student, optimizer and teacher are bit for bit what they were
    before the spoilt quantity was computed, -1 where not. A site of none only watches.
    """
    state: dict[str, Any] = {}

    def due() -> bool:
        training = state.get("training")
        return training is not None and training.step + 1 >= POISONED

    def snapshot() -> str:
        training = state["training"]
        coach = training.coach
        parts = (training.module, training.optimizer, coach.teacher)
        return repr(timeless([part.state_dict() for part in parts]))

    def spoilt(real: Callable, change: Callable[[Any], Any]) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            found = real(*arguments, **options)
            return change(found) if due() else found

        return call

    def first(leaf: Tensor) -> Tensor:
        """The tensor with one entry replaced."""
        flat = leaf.clone().reshape(-1)
        flat[:1] = value
        return flat.reshape(leaf.shape)

    def one(tree: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(iter(tree))
        return {**tree, name: first(tree[name])}

    TrainingLoop: Any = fit.TrainingLoop
    Coach: Any = coaching.Coach
    Recorder: Any = recording.Recorder
    LookBack: Any = looking_back.LookBack
    take_step, update, post_step = TrainingLoop.take_step, Coach.update, Recorder._after_step

    def watched(training: Any, rows: Tensor) -> None:
        if "training" not in state:
            state["training"] = training
            if site == "gradient":
                leaf = next(training.module.parameters())
                leaf.register_hook(lambda grad: first(grad) if due() else grad)
        state["before"] = snapshot()
        try:
            take_step(training, rows)
        except NumericError:
            verdict.set(0, 1 if state["before"] == snapshot() else -1)
            raise

    def teaching(coach: Any, valid: Any) -> Any:
        state["before"] = snapshot()  # the student has stepped; its teacher must not
        return update(coach, valid)

    def stepped(recorder: Any) -> None:
        post_step(recorder)
        if due():
            with torch.no_grad():
                leaf = next(recorder.student.module.parameters())
                leaf.copy_(first(leaf))

    TrainingLoop.take_step, Coach.update = watched, teaching
    Objective: Any = objective.Objective
    Validation: Any = validation.Validation
    if site == "data":
        # The first and the last sample: one of them is in the part of any rank.
        TrainingLoop.samples = spoilt(
            TrainingLoop.samples, lambda pair: (first(first(pair[0]).flip(0)).flip(0), pair[1])
        )
    elif site == "loss":
        Objective.sample_losses = spoilt(Objective.sample_losses, first)
    elif site == "weights":
        Objective.weights = spoilt(Objective.weights, first)
    elif site == "validation":
        real = Validation.__init__

        def made(self: Any, *arguments: Any) -> None:
            real(self, *arguments)
            loss = self._loss
            self._loss = lambda *pair: loss(*pair) * value if due() else loss(*pair)

        Validation.__init__ = made
    elif site == "meta-gradient":

        def change(found: Any) -> Any:
            return replace(found, gradient=one(found.gradient))

        LookBack.__call__ = spoilt(LookBack.__call__, change)
    elif site == "student":
        Recorder._after_step = stepped


def finite(tree: Any) -> bool:
    """Whether all floating tensors of a state are finite, but for the best accuracy so far."""
    if isinstance(tree, dict):
        return all(map(finite, tree.values()))
    if isinstance(tree, list | tuple):
        return all(map(finite, tree))
    return not (isinstance(tree, Tensor) and tree.is_floating_point()) or bool(
        tree.isfinite().all()
    )
