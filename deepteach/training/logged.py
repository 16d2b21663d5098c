"""Loggers are told of a run, by the first rank, each line after its checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError, DeepTeachError
from deepteach.loggers.base import AbstractLogger, LoggedRun
from deepteach.names import brief

Tell = Callable[[Mapping[str, Any]], None]


@contextmanager
def logged(loggers: Sequence[AbstractLogger], run: LoggedRun, ranks: Ranks) -> Iterator[Tell]:
    """Open the run with every logger, yield what tells them a line, and close it with all.

    An epoch that a logger lacks, because the run was killed after its checkpoint, is told again
    first. A logger that fails in the middle of a run is warned of and left out, unless `stops`
    says that its error is the user's own.

    Raises:
        ConfigError: a logger cannot begin.
    """
    if not loggers:
        yield lambda line: None
        return
    opened: list[AbstractLogger] = []

    def begin() -> None:
        for logger in loggers:
            try:
                there = logger.begin(run)
                opened.append(logger)
                for line in run.lines:
                    if line["epoch"] not in there:
                        logger.epoch(line)
            except DeepTeachError:
                raise
            except Exception as error:  # another library's, which may raise anything
                raise ConfigError(
                    f"the logger {type(logger).__name__} cannot begin ({brief(error)[:300]}): mend "
                    "its settings, or leave it out"
                ) from error

    def tell(line: Mapping[str, Any]) -> None:
        for logger in tuple(opened):
            try:
                logger.epoch(line)
            except Exception as error:
                if logger.stops and ranks.count > 1 and not isinstance(error, DeepTeachError):
                    # Other ranks are told of errors by their line alone.
                    raise ConfigError(
                        f"the logger {type(logger).__name__} failed ({brief(error)[:300]}): the "
                        "state is committed; mend it, then go on with resume"
                    ) from error
                if logger.stops:
                    raise
                _warn(logger, error)
                opened.remove(logger)

    finished = False
    try:
        ranks.lead(begin)
        yield lambda line: ranks.lead(lambda: tell(line))
        finished = True
    finally:
        for logger in opened:
            try:
                logger.end(finished)
            except Exception as error:
                _warn(logger, error)


def _warn(logger: AbstractLogger, error: Exception) -> None:
    warnings.warn(
        f"the logger {type(logger).__name__} failed ({brief(error)[:300]}) and is told no more of "
        "this run; metrics.jsonl has every line",
        RuntimeWarning,
        stacklevel=2,
    )
