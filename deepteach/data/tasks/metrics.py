"""Figures by which predictions are judged: names and directions, to be read back by a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


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

    def best(self, values: Iterable[float]) -> float:
        """The best of several epochs."""
        return max(values) if self.greater else min(values)


ACCURACY = Metric("accuracy", "accuracy")

METRICS = {metric.key: metric for metric in (ACCURACY,)}
"""Every figure by its key."""
