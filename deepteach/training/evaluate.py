"""What a run says of samples: the sums that figures are made of, and its trust in labels."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepteach.core.coach import Coach
from deepteach.core.losses import normalise
from deepteach.core.predict import at_once, device_of, evaluating, logits
from deepteach.data.dataset import Data
from deepteach.data.rows import Samples, chunks, select
from deepteach.data.tasks.base import Task
from deepteach.runs.serialization import from_bytes, to_bytes

STATES_SHOWN = 500
"""Samples whose internal states are kept."""


@dataclass(frozen=True)
class Trust:
    """Every training sample: weight (mean 1), loss, prediction, the user's row number.

    `internal` `(k, width)` are the states of up to `STATES_SHOWN` samples, evenly spaced: those
    at the places `states` `(k,)`.
    """

    weight: Tensor
    loss: Tensor
    predicted: Tensor
    internal: Tensor
    rows: Tensor

    @property
    def states(self) -> Tensor:
        return shown_states(len(self.weight))


def shown_states(count: int) -> Tensor:
    """Places `(k,)` of the samples, of `count`, whose states are kept."""
    return torch.linspace(0, count - 1, min(STATES_SHOWN, count)).long()


def trust(coach: Coach, data: Data) -> Trust:
    """Weigh all training samples, in eval mode, by a copy of the teacher.

    Each rank sees, and reads, its part of them; the answer is that of all.

    The copy's trusted features are fitted once more on all trusted samples in eval mode:
    states in train mode depend on the batch where the student holds batch normalisation.
    """
    device, group, ranks = device_of(coach.student.module), data.group, coach.ranks
    count = len(data.y_train)
    own = ranks.part(torch.arange(count))
    inputs = data.x_train if ranks.count == 1 else select(data.x_train, own)
    shown = torch.zeros(count, dtype=torch.bool)
    shown[shown_states(count)] = True
    teacher, size = copy.deepcopy(coach.teacher), at_once(inputs)
    y, y_valid = data.task.learned(data.y_train), data.task.learned(data.y_valid)
    with evaluating(coach.student.module):
        trusted = [
            coach.look(x.to(device), y.to(device))
            for x, y in zip(data.x_valid.split(size), y_valid.split(size), strict=True)
        ]
        teacher.fit(trusted[0].followed_by(*trusted[1:]))
        seen: list[dict[str, Tensor]] = []
        for part, x in zip(own.split(size), chunks(inputs, size, device), strict=True):
            snapshot = coach.look(
                *(x, y[part].to(device)),
                index=part.to(device),
                group=None if group is None else group[part].to(device),
            )
            seen.append(
                {
                    "log_weight": teacher.log_trust(snapshot).double(),
                    "loss": snapshot.losses.float().cpu(),
                    "predicted": data.task.predicted(snapshot.logits).cpu(),
                    "internal": snapshot.internal[shown[part].to(device)].float().cpu(),
                }
            )
    found = _joined(seen)
    if ranks.count > 1:
        found = _joined([from_bytes(raw) for raw in ranks.collected(to_bytes(found))])
    weights = (normalise(found.pop("log_weight")) * count).float().cpu()
    return Trust(weights, rows=data.rows, **found)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def measured(task: Task, module: nn.Module, inputs: Samples, labels: Tensor) -> Tensor:
    """The sums of `Task.measured` over samples, in eval mode; of none, a rank's part may be."""
    found = logits(module, inputs) if len(labels) else torch.zeros(0, task.outputs)
    return task.measured(found, labels.cpu())
