"""Figures by which predictions are judged: names and directions, to be read back by a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deepteach.errors import DataError


@dataclass(frozen=True)
class Metric:
    """A figure of predictions.

    It is called `valid_KEY` and `test_KEY` in metrics.jsonl, `test_KEY_selected` and so on in
    summary.json.
    """

    key: str
    title: str
    """In reports."""
    share: bool = True
    """1 is perfect, and it is shown in per cent."""
    greater: bool = True
    """The greater the better."""

    def column(self, part: str, whose: str = "") -> str:
        """Its name in metrics.jsonl; `whose` ends that of another model's, as `_ema`."""
        return f"{part}_{self.key}{whose}"

    def named(self, part: str, when: str, whose: str = "") -> str:
        """Its name in summary.json, as in `test_accuracy_ema_last`."""
        return f"{self.column(part, whose)}_{when}"

    def best(self, values: Iterable[float]) -> float:
        """The best of several epochs."""
        return max(values) if self.greater else min(values)


ACCURACY = Metric("accuracy", "accuracy")

MICRO_F1 = Metric("micro_f1", "micro F1")
"""2 TP / (2 TP + FP + FN), of all labels of all samples together."""

R2 = Metric("r2", "R2")
"""1 - (sum of squared errors) / (that of the mean), the mean over targets."""

RMSE = Metric("rmse", "RMSE", share=False, greater=False)
"""Root of the mean squared error, in the user's units, the mean over targets."""


def metric_of(summary: Mapping[str, Any]) -> Metric:
    """The figure that chose the epoch of a run, by its summary.json.

    Raises:
        DataError: one that is not known here.
    """
    key = summary.get("metric", ACCURACY.key)  # runs before there were tasks name none
    if key not in METRICS:
        raise DataError(
            f"a run was judged by {key!r}, which is none of {', '.join(METRICS)}: it is of a newer "
            "version, or damaged"
        )
    return METRICS[key]


METRICS = {metric.key: metric for metric in (ACCURACY, MICRO_F1, R2, RMSE)}
"""Every figure by its key."""
