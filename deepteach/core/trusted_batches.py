"""Trusted batches, read one per update from whatever the user passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from deepteach.core.student import Inputs
from deepteach.errors import DataError
from deepteach.rng import replayed


class TrustedBatches:
    """A batch `(x, y)`, or an iterable of batches read again and again.

    A DataLoader draws its order from the global generator. Here it draws from a private
    stream instead, so reading trusted data never shifts the user's random numbers, and a
    resumed run reads the same batches.
    """

    def __init__(self) -> None:
        self.source: Iterable | tuple | None = None
        self._reading: Iterable | None = None
        self._iterator: Iterator | None = None
        self._epoch, self._position = 0, 0

    def next(self) -> tuple[Inputs, Tensor]:
        """The next trusted batch."""
        if self.source is None:
            raise DataError("coach.update needs trusted data: pass (x_valid, y_valid) or a loader")
        if _is_batch(self.source):
            x, y = self.source
            return x, y
        if self._iterator is None or self._reading is not self.source:
            self._open(skip=self._position)
        batch = self._draw(self._position)
        if batch is None:
            self._epoch, self._position = self._epoch + 1, 0
            self._open(skip=0)
            batch = self._draw(0)
        if batch is None:
            raise DataError("the trusted loader is empty: give it at least one batch")
        if not _is_batch(batch):
            raise DataError(
                f"a trusted loader must yield (x, y) batches, got {type(batch).__name__}"
            )
        self._position += 1
        return batch[0], batch[1]

    def _open(self, skip: int) -> None:
        assert self.source is not None
        with _private_stream(self._epoch, 0):
            self._reading, self._iterator = self.source, iter(self.source)
        for position in range(skip):
            self._draw(position)

    def _draw(self, position: int) -> Any:
        assert self._iterator is not None
        with _private_stream(self._epoch, position):
            return next(self._iterator, None)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._epoch, self._position = state["epoch"], state["position"]
        self._iterator = None


@contextmanager
def _private_stream(epoch: int, position: int) -> Iterator[None]:
    """Seed the global generators for one draw, then put them back."""
    with replayed(None):
        torch.manual_seed(epoch * 1_000_003 + position)
        yield


def _is_batch(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[1], Tensor)
