"""What a run says of single samples: weights.csv, groups.csv, samples.safetensors."""

from __future__ import annotations

import math

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepteach.data.dataset import Data
from deepteach.data.tasks.base import Task
from deepteach.runs.storage import csv_text
from deepteach.runs.weights import AT_ONCE, Weights
from deepteach.training.evaluate import Trust
from deepteach.training.weight_history import WeightHistory

SUSPECTS_SHOWN, FEWEST_SHOWN = 240, 48
"""Samples of which the report shows the input, to be judged: at most, and at least."""

SHOWN_BYTES = 2**24
"""Between the two, as many as take so much in the file."""


def sample_weights(data: Data, trust: Trust) -> Weights:
    """The training samples by the user's own row; labels are shown as their task says.

    Numbers have the digits that weights.csv has, so that a run read back says the same.
    """
    given, predicted, weight = data.y_train, trust.predicted.cpu(), trust.weight.cpu()
    task = data.task
    found = Weights(
        index=data.rows.numpy(),
        given=_text(task, given),
        predicted=_text(task, predicted),
        weight=_rounded(weight),
        loss=_rounded(trust.loss.cpu()),
        true=np.full(len(given), "") if data.y_clean is None else _text(task, data.y_clean),
        suggested=_text(task, task.suggested(given, predicted, weight)),
        group=None if data.group is None else np.array(data.group_names)[data.group.numpy()],
        path=None if data.paths is None else np.array(list(data.paths)),
    )
    return found.take(np.argsort(found.index, kind="stable"))


def weights_csv(weights: Weights) -> bytes:
    """A line per training sample, in the order of their index."""
    columns, lines = weights.columns(), [csv_text([list(weights.columns())])]
    for start in range(0, len(weights), AT_ONCE):
        some = [column[start : start + AT_ONCE] for column in columns.values()]
        cells = [
            [f"{value:.6g}" for value in column] if column.dtype.kind == "f" else column.tolist()
            for column in some
        ]
        lines.append(csv_text(zip(*cells, strict=True)))
    return "".join(lines).encode(errors="backslashreplace")


def _text(task: Task, codes: Tensor) -> NDArray[np.str_]:
    shown = (map(str, task.shown(part)) for part in codes.split(AT_ONCE))
    return np.concatenate([np.array(list(part), dtype=np.str_) for part in shown])


def _rounded(values: Tensor) -> NDArray[np.float64]:
    parts = (part.tolist() for part in values.split(AT_ONCE))
    shown = (float(f"{value:.6g}") for part in parts for value in part)
    return np.fromiter(shown, np.float64, len(values))


def groups_csv(data: Data, trust: Trust) -> bytes | None:
    """A line per source of samples, with how many there are and their mean weight."""
    if data.group is None:
        return None
    weight, lines = trust.weight.cpu().double(), []
    for code, name in enumerate(data.group_names):
        own = weight[data.group == code]
        if len(own):
            lines.append((name, len(own), f"{float(own.mean()):.6g}"))
    return csv_text([("group", "samples", "mean_weight"), *lines]).encode()


def samples(data: Data, trust: Trust, history: WeightHistory) -> bytes:
    """Inputs and states that the report shows, and weights by epoch in order of index."""
    count = len(data.y_train)
    each = 4 * max(math.prod(data.x_train.shape[1:]), 1)
    shown = min(max(SHOWN_BYTES // each, FEWEST_SHOWN), SUSPECTS_SHOWN)
    suspects = torch.argsort(trust.weight, stable=True)[:shown]
    courses = data.rows[history.places(count)]
    by_index = torch.argsort(courses, stable=True)
    return safetensors.torch.save(
        {
            "internal": trust.internal.contiguous(),
            "internal_index": data.rows[trust.states],
            "history": torch.stack(history.course)[:, by_index].contiguous(),
            "history_index": courses[by_index].contiguous(),
            "suspects": (data.x_train[suspects] * data.scale + data.mean).float().contiguous(),
            "suspect_index": data.rows[suspects],
        }
    )
