"""SIGINT and SIGTERM end the step at hand, not the run: the loop asks, commits and leaves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """Raised by the loop after it committed; `code` is the process's exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.code = 128 + number


RELAYED = 2.0
"""Seconds within which torchrun passes on a signal that its workers have had already."""


class Interrupts:
    """`received` is the first signal's number, None while there was none.

    Where a launcher `relays` signals, the same one again within `RELAYED` is no second one: a
    terminal sends Ctrl-C to the launcher and to its workers.
    """

    def __init__(self, relays: bool = False) -> None:
        self.received: int | None = None
        self._relays, self._at = relays, 0.0

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            if self._relays and time.monotonic() - self._at < RELAYED:
                return
            # Asked twice: leave at once. What is committed is whole at every instant.
            os._exit(128 + number)
        self.received, self._at = number, time.monotonic()


@contextmanager
def interrupts(relays: bool = False) -> Iterator[Interrupts]:
    """Collect signals while inside; outside the main thread nothing is installed."""
    state = Interrupts(relays)
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
