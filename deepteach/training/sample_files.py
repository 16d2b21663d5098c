"""What a run says of single samples: weights.csv, groups.csv, samples.safetensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepteach.data.dataset import Data
from deepteach.report.table import csv_text
from deepteach.runs.weights import Weights
from deepteach.training.evaluate import Trust
from deepteach.training.weight_history import WeightHistory

SUSPECTS_SHOWN = 48
"""Samples of which the report shows the input."""


def sample_weights(data: Data, trust: Trust) -> Weights:
    """The training samples by the user's own row; labels are shown as their task says.

    Numbers have the digits that weights.csv has, so that a run read back says the same.
    """
    given, predicted, weight = data.y_train, trust.predicted.cpu(), trust.weight.cpu()
    task = data.task
    found = Weights(
        index=data.rows.numpy(),
        given=_text(task.shown(given)),
        predicted=_text(task.shown(predicted)),
        weight=_rounded(weight),
        loss=_rounded(trust.loss.cpu()),
        true=_text([""] * len(given) if data.y_clean is None else task.shown(data.y_clean)),
        suggested=_text(task.shown(task.suggested(given, predicted, weight))),
        group=None if data.group is None else np.array(data.group_names)[data.group.numpy()],
        path=data.paths,
    )
    return found.take(np.argsort(found.index, kind="stable"))


def weights_csv(weights: Weights) -> bytes:
    """A line per training sample, in the order of their index."""
    columns = {
        name: [f"{value:.6g}" for value in column] if column.dtype.kind == "f" else column.tolist()
        for name, column in weights.columns().items()
    }
    return csv_text([list(columns), *zip(*columns.values(), strict=True)]).encode()


def _text(shown: list[Any]) -> NDArray[np.str_]:
    return np.array([str(label) for label in shown], dtype=np.str_)


def _rounded(values: Tensor) -> NDArray[np.float64]:
    return np.array([float(f"{value:.6g}") for value in values.tolist()])


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
    suspects = torch.argsort(trust.weight, stable=True)[:SUSPECTS_SHOWN]
    courses = data.rows[history.places(count)]
    by_index = torch.argsort(courses, stable=True)
    return safetensors.torch.save(
        {
            "internal": trust.internal.contiguous(),
            "internal_index": data.rows[trust.states],
            "history": torch.stack(history.course)[:, by_index].contiguous(),
            "history_index": courses[by_index].contiguous(),
            "suspects": (data.x_train[suspects] * data.scale + data.mean).contiguous(),
            "suspect_index": data.rows[suspects],
        }
    )
