"""What a run says of single samples: weights.csv, groups.csv, samples.safetensors."""

from __future__ import annotations

import safetensors.torch
import torch

from deepteach.data.dataset import Data
from deepteach.report.table import csv_text
from deepteach.training.evaluate import Trust
from deepteach.training.weight_history import WeightHistory

SUSPECTS_SHOWN = 48
"""Samples of which the report shows the input."""


def weights_csv(data: Data, trust: Trust) -> bytes:
    """A line per training sample, named by the user's own row.

    Labels are shown, and one is suggested, as their task says.
    """
    given, predicted, weight = data.y_train, trust.predicted.cpu(), trust.weight.cpu()
    task = data.task
    columns = {
        "index": data.rows.tolist(),
        **({} if data.paths is None else {"path": data.paths.tolist()}),
        "given_label": task.shown(given),
        "predicted_label": task.shown(predicted),
        "suggested_label": task.shown(task.suggested(given, predicted, weight)),
        "weight": [f"{value:.6g}" for value in weight.tolist()],
        "loss": [f"{value:.6g}" for value in trust.loss.tolist()],
    }
    if data.group is not None:
        columns["group"] = [data.group_names[code] for code in data.group.tolist()]
    truth = [""] * len(given) if data.y_clean is None else task.shown(data.y_clean)
    columns["true_label"] = truth
    return csv_text([list(columns), *zip(*columns.values(), strict=True)]).encode()


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
