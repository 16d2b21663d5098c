"""What a logger is told, and when; a function of one's own is one, too."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepteach.errors import ConfigError, DeepTeachError
from deepteach.names import brief
from deepteach.runs.storage import write_atomic

_IDENTITIES = "loggers.json"
"""In a run's folder: by which names the run goes elsewhere, so that a resumed one is the same."""


@dataclass(frozen=True)
class LoggedRun:
    """A run of one method, as it begins. Those trained beside it are runs of their own.

    Args:
        method: its name.
        settings: the configuration, nested settings by names with dots.
        folder: None where nothing is written.
        lines: of metrics.jsonl so far; not empty where the run is resumed.
    """

    method: str
    settings: Mapping[str, Any]
    folder: Path | None
    lines: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The last two parts of the folder: a method beside another one has the same last one."""
        if self.folder is None:
            return self.method
        return "/".join(self.folder.resolve().parts[-2:])

    def identity(self, logger: str) -> str | None:
        """What `remember` kept; None at first."""
        return self._identities().get(logger)

    def remember(self, logger: str, identity: str) -> None:
        """Keep the name by which another place knows this run."""
        if self.folder is not None:
            found = {**self._identities(), logger: identity}
            write_atomic(self.folder / _IDENTITIES, (json.dumps(found) + "\n").encode())

    def _identities(self) -> dict[str, str]:
        path = None if self.folder is None else self.folder / _IDENTITIES
        if path is None or not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ConfigError(
                f"{path} is damaged: move it away, and the loggers begin the run anew"
            )
        return found


class AbstractLogger(ABC):
    """Told of runs, one after the other: it begins, its epochs, it ends. By the first rank."""

    stops = False
    """Whether an error of an epoch's ends the run; else it is warned of, and told no more."""

    @abstractmethod
    def begin(self, run: LoggedRun) -> Collection[int]:
        """Open a run, and say which epochs of `run.lines` are there already."""

    @abstractmethod
    def epoch(self, line: Mapping[str, Any]) -> None:
        """Take a line of metrics.jsonl. The checkpoint of its epoch has been committed."""

    @abstractmethod
    def end(self, finished: bool) -> None:
        """Close the run; `finished`: it came to its end."""


class CalledLogger(AbstractLogger):
    """A function of a user's own, told of every line once, with the `method` of its run.

    What it raises ends the run, with the checkpoint committed: as it is, or on one line where the
    function was given as `path`.
    """

    stops = True

    def __init__(
        self, function: Callable[[Mapping[str, Any]], object], path: str | None = None
    ) -> None:
        self.function, self.path = function, path
        self._method = ""

    def begin(self, run: LoggedRun) -> Collection[int]:
        self._method = run.method
        return {line["epoch"] for line in run.lines}

    def epoch(self, line: Mapping[str, Any]) -> None:
        try:
            self.function({"method": self._method, **line})
        except DeepTeachError:
            raise
        except Exception as error:
            if self.path is None:
                raise
            raise ConfigError(
                f"logger {self.path!r} failed ({brief(error)}): the state is committed; mend it, "
                "then go on with --resume"
            ) from error

    def end(self, finished: bool) -> None:
        pass


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a line that are known, without its step, which is the axis."""
    return {
        name: float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by names with dots; lists and None as text."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat_settings(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            found[prefix + key] = value if plain else json.dumps(value, default=str)
    return found
