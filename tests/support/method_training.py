"""A short training by any method, and how far it has come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from toy import CLASSES, FEATURES

import deepteach as dt
from deepteach.data.dataset import Data
from deepteach.distributed.collectives import Ranks
from deepteach.teachers.registry import method
from deepteach.training.build import assemble
from deepteach.training.choices import Overrides
from deepteach.training.config import make
from deepteach.training.loop import TrainingLoop
from deepteach.training.schedule import Schedule
from deepteach.training.settle import settle_context


def trained(data: Data, text: Any, epochs: int = 2) -> TrainingLoop:
    """A training that is about to begin."""
    torch.manual_seed(0)
    layers = {"lift": nn.Linear(FEATURES, 6), "act": nn.Tanh(), "fc": nn.Linear(6, CLASSES)}
    module = nn.Sequential()
    for name, layer in layers.items():
        module.add_module(name, layer)
    config = make({"data": "toy", "lr": 0.1, "seed": 5})
    context = settle_context(config, data, 6, 10 * epochs)
    chosen = method(text, replace(context, seed=0))
    schedule = Schedule(
        epochs=epochs,
        batch_size=20,
        milestones=(epochs - 1,),
        interval=chosen.interval or 3,
        window=chosen.window or 2,
        valid_batch=30,
    )
    student = dt.Student(module, "fc")
    return assemble(config, data, student, chosen, schedule, Overrides(), Ranks()).loop


def on(training: TrainingLoop, steps: int | None = None) -> list[Any]:
    """Go on for some steps, or to the end; the ends of epochs that were passed."""
    ends = []
    for end in training.epoch_steps():
        ends += [] if end is None else [end]
        if training.step == steps:
            break
    return ends


def leaves(training: TrainingLoop) -> list[Tensor]:
    return [*training.module.state_dict().values(), *training.coach.teacher.state_dict().values()]


def seen(step: int = 3, count: int = 12) -> dt.Snapshot:
    """Random states, logits and labels of a batch at that step."""
    generator = torch.Generator().manual_seed(step)
    internal = torch.randn(count, 6, generator=generator)
    labels = torch.arange(count) % CLASSES
    logits = torch.randn(count, CLASSES, generator=generator)
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return dt.Snapshot(internal, logits, labels, losses, dt.Clock(step=step))


def rows_of(training: TrainingLoop) -> list[list[Tensor]]:
    """The rows of every step, by epoch over all episodes."""
    found: list[list[Tensor]] = [[]]
    choose = training.curriculum.choose

    def spy(training: Any, rows: Tensor) -> Tensor:
        found[-1].append(choose(training, rows))
        return found[-1][-1]

    training.curriculum.choose = spy  # type: ignore[method-assign]
    for end in training.epoch_steps():
        found += [] if end is None else [[]]
    return found[:-1]
