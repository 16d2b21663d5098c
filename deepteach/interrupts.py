"""SIGINT and SIGTERM end the step at hand, not the run: the loop asks, commits and leaves."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """Raised by the loop after it committed; `code` is the process's exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.code = 128 + number


class Interrupts:
    """`received` is the first signal's number, None while there was none."""

    def __init__(self) -> None:
        self.received: int | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            # Asked twice: leave at once. What is committed is whole at every instant.
            os._exit(128 + number)
        self.received = number


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Collect signals while inside; outside the main thread nothing is installed."""
    state = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, state.handle) for number in numbers]
    try:
        yield state
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
