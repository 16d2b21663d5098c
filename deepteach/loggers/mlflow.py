"""Runs of an MLflow experiment."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from deepteach.errors import ConfigError
from deepteach.loggers.base import AbstractLogger, LoggedRun, numbers

_NAME = "mlflow"
_AT_ONCE = 100  # parameters of one request


class MLflow(AbstractLogger):
    """Metrics over training steps, and the settings as parameters; no run is made active.

    Args:
        experiment: its name; it is made where there is none.
        tracking_uri: of the server or store; MLflow's own choice (`MLFLOW_TRACKING_URI`) if None.

    Raises:
        ConfigError: mlflow is not installed.
    """

    def __init__(self, experiment: str = "deepteach", tracking_uri: str | None = None) -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ConfigError(
                "the logger mlflow needs mlflow: pip install 'deepteach[mlflow]'"
            ) from error
        self._client_of, self.experiment, self.tracking_uri = (
            MlflowClient, experiment, tracking_uri,
        )  # fmt: skip

    def begin(self, run: LoggedRun) -> Collection[int]:
        client = self._client = self._client_of(tracking_uri=self.tracking_uri)
        known = run.identity(_NAME)
        if known is not None:
            self._run = known
            client.update_run(known, status="RUNNING")
            return {int(one.value) for one in client.get_metric_history(known, "epoch")}
        found = client.get_experiment_by_name(self.experiment)
        experiment = client.create_experiment(self.experiment) if found is None else None
        place = found.experiment_id if found is not None else experiment
        self._run = client.create_run(str(place), run_name=run.name).info.run_id
        run.remember(_NAME, self._run)
        from mlflow.entities import Param

        settings = [Param(name, str(value)) for name, value in run.settings.items()]
        for start in range(0, len(settings), _AT_ONCE):
            client.log_batch(self._run, params=settings[start : start + _AT_ONCE])
        return ()

    def epoch(self, line: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, line["step"]) for name, value in numbers(line).items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")
