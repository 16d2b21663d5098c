"""Watching a run: a progress bar on a terminal, plain lines elsewhere, silence on request."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deepteach.data.tasks.metrics import ACCURACY, METRICS


class Watcher(Protocol):
    """What the loop reports to."""

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def step(self, step: int) -> None: ...
    def epoch(self, line: dict) -> None: ...


class Silent:
    """Reports nothing but what must not be missed."""

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        warnings.warn(text, UserWarning, stacklevel=2)

    def step(self, step: int) -> None:
        pass

    def epoch(self, line: dict) -> None:
        pass


class Output(Console):
    """A console whose reader may leave, as `| head` does: what is under way goes on in silence."""

    def on_broken_pipe(self) -> None:
        with suppress(SystemExit):  # by which rich ends the process
            super().on_broken_pipe()


class Lines:
    """One line at most every `every` seconds, and for the last epoch."""

    def __init__(self, console: Console, name: str, epochs: int, every: float = 10.0) -> None:
        self._console, self._name, self._epochs, self._every = console, name, epochs, every
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        self._console.print(f"{self._name}: {text}", soft_wrap=True, markup=False)

    def warn(self, text: str) -> None:
        self.say(text)

    def step(self, step: int) -> None:
        pass

    def epoch(self, line: dict) -> None:
        if line["epoch"] == self._epochs or time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self.say(f"epoch {line['epoch']}/{self._epochs}  {describe(line)}")


class Bar:
    """A rich progress bar with the last epoch's figures."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self._progress, self._name = progress, name
        self._task = progress.add_task(name, total=total, figures="")

    def say(self, text: str) -> None:
        self._progress.console.print(f"{self._name}: {text}", soft_wrap=True, markup=False)

    def warn(self, text: str) -> None:
        self.say(text)

    def step(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def epoch(self, line: dict) -> None:
        self._progress.update(self._task, figures=describe(line))


def describe(line: dict) -> str:
    """The figures of one line of metrics.jsonl."""
    parts = [f"loss {line['train_loss']:.3f}"]
    metric = next((m for m in METRICS.values() if m.column("valid") in line), ACCURACY)
    for part, whose, name in ("valid", "", "valid"), ("test", "", "test"), ("test", "_ema", "ema"):
        value = line.get(metric.column(part, whose))
        if value is not None:
            parts.append(f"{name} {value:.1%}")
    return "  ".join(parts)


@contextmanager
def watching(console: Console, name: str, epochs: int, total: int) -> Iterator[Watcher]:
    """The watcher that suits the console."""
    if not console.is_terminal:
        yield Lines(console, name, epochs)
        return
    columns = (
        TextColumn("{task.description:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress, name, total)
