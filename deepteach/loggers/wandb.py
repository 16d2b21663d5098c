"""Runs of a Weights & Biases project."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from deepteach.errors import ConfigError
from deepteach.loggers.base import AbstractLogger, LoggedRun, numbers

_NAME = "wandb"


class WandB(AbstractLogger):
    """Metrics over training steps, and the settings as the run's configuration.

    `WANDB_MODE=offline` keeps all of it in the run's folder until `wandb sync`. What an offline run
    has cannot be asked for, so a resumed one is told only of new epochs.

    Args:
        project: its name.
        options: more of `wandb.init`, as `entity` or `mode`.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(self, project: str = "deepteach", **options: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "the logger wandb needs wandb: pip install 'deepteach[wandb]'"
            ) from error
        self._wandb, self.project, self.options = wandb, project, options

    def begin(self, run: LoggedRun) -> Collection[int]:
        known = run.identity(_NAME)
        own = {
            "project": self.project, "name": run.name, "config": dict(run.settings),
            "dir": None if run.folder is None else str(run.folder),
            "reinit": "create_new",  # a run of the user's own stays as it is
        }  # fmt: skip
        again = {} if known is None else {"id": known, "resume": "allow"}
        self._run = self._wandb.init(**{**own, **again, **self.options})
        run.remember(_NAME, self._run.id)
        there = [one for one in run.lines if self._run.offline or one["step"] < self._run.step]
        return {one["epoch"] for one in there}

    def epoch(self, line: Mapping[str, Any]) -> None:
        self._run.log(numbers(line), step=line["step"])

    def end(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
