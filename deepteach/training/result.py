"""A finished run, as `train` hands it back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from deepteach.core.coach import Coach
from deepteach.core.predict import logits
from deepteach.data.inputs import RawInputs
from deepteach.data.tasks.base import Task
from deepteach.runs.reader import Run, folder_of
from deepteach.runs.sample_table import SampleTable, in_short
from deepteach.runs.weights import Weights
from deepteach.training.config import Config
from deepteach.training.evaluate import Trust


@dataclass(frozen=True)
class Result(SampleTable):
    """A finished run.

    Args:
        model: the trained student; the module that was given.
        coach: with the teacher and the optimizer as they are at the end.
        config: the settings, resolved.
        summary: the fields of summary.json.
        metrics: a mapping per epoch, the lines of metrics.jsonl.
        trust: the training samples as the teacher sees them at the end.
        path: the run's folder; None where nothing was written.
        beside: summaries of the runs trained on the same schedule, by method; "uniform" is
            among them unless `baseline` was off.
        task: what the labels are.
        inputs: raw samples to what the model takes.
        weights: the training samples as weights.csv lists them, in the order of their index.
        model_ema: the moving average of the student; None where `ema` is off.
        metrics_beside: as `metrics`, of the runs on the same schedule.
    """

    model: nn.Module
    coach: Coach
    config: Config
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    trust: Trust
    path: Path | None
    beside: dict[str, dict[str, Any]]
    task: Task
    inputs: RawInputs
    weights: Weights
    model_ema: nn.Module | None = None
    metrics_beside: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return in_short("Result", self.summary, self.path)

    def _repr_html_(self) -> str:
        """In a notebook: the methods side by side, and the curves."""
        from deepteach.report.notebook import run_html  # matplotlib, which training does without

        config, own = self.config.model_dump(mode="json"), self.weights
        beside = tuple(
            Run(
                Path(folder_of(name)),
                {**config, "method": name},
                summary,
                self.metrics_beside.get(name, []),
                own,
            )
            for name, summary in self.beside.items()
        )
        path = self.path or Path()
        return run_html(Run(path, config, self.summary, self.metrics, own, beside=beside))

    def predict(self, x: Any) -> NDArray[Any]:
        """Predictions for raw samples, in the user's own labels or units.

        `(n,)` classes (text, or int64 where labels were numbers) or targets, `(n, k)` 0 and 1 for
        several labels, `(n, classes)` probabilities where labels were given so. By the averaged
        student where `ema` is on.

        Raises:
            DataError: samples that are not as those of the training.
        """
        student = self.model if self.model_ema is None else self.model_ema
        return self.task.given_back(self.task.predicted(logits(student, self.inputs(x))))
