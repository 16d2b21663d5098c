"""Loggers by name, or by what a user gives in the place of one."""

from __future__ import annotations

from typing import Any

from deepteach.errors import ConfigError
from deepteach.loggers.base import AbstractLogger, CalledLogger
from deepteach.loggers.mlflow import MLflow
from deepteach.loggers.tensorboard import TensorBoard
from deepteach.loggers.wandb import WandB
from deepteach.names import called, imported, is_path, known

LOGGERS: dict[str, type[AbstractLogger]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def logger_of(given: Any) -> AbstractLogger:
    """A logger of a name, a `package.module:name`, a function of a line, or a logger.

    A class that a path names is called without arguments.

    Raises:
        ConfigError: it is none of them, or what it needs is not installed.
    """
    if isinstance(given, AbstractLogger):
        return given
    if isinstance(given, str) and not is_path(given):
        return known("logger", given, LOGGERS)()
    path = given if isinstance(given, str) else None
    found = given if path is None else imported("logger", path)
    if path is not None and isinstance(found, type):
        found = called("logger", path, found)
    if isinstance(found, AbstractLogger):
        return found
    if callable(found) and not isinstance(found, type):
        return CalledLogger(found, path)
    raise ConfigError(
        f"logger {path or type(given).__name__!r}: expected one of {', '.join(LOGGERS)}, "
        "a function of a line of metrics.jsonl, or an AbstractLogger"
    )
