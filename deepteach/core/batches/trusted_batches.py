"""Trusted batches, read one per update from whatever the user passes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from deepteach.core.student import Inputs
from deepteach.errors import DataError
from deepteach.rng import globals_kept, replayed

Trusted = Iterable | tuple | Callable[[], tuple]
"""A batch `(x, y)`, an iterable of batches, or what makes a batch when an update needs it."""


class TrustedBatches:
    """A batch `(x, y)`, an iterable of batches read again and again, or a function that makes one.

    What a function returns is up to it: its batches are not taken back, nor its place resumed.

    A DataLoader draws its order from the global generator, or from one of its own, and its
    samples may be drawn by torch, Python or NumPy. Here all of these stand at a place of a
    private stream instead, so reading trusted data never shifts the user's random numbers, and
    a resumed run reads the same batches.
    """

    def __init__(self) -> None:
        self.source: Trusted | None = None
        self._reading: Iterable | None = None
        self._iterator: Iterator | None = None
        self._epoch, self._position = 0, 0
        self._drawn: tuple[Inputs, Tensor] | None = None
        self._returned: tuple[tuple[Inputs, Tensor], int, int] | None = None
        """A batch that was taken back, and where its reading had led."""

    def next(self) -> tuple[Inputs, Tensor]:
        """The next trusted batch."""
        self._drawn = None
        if self.source is None:
            raise DataError("coach.update needs trusted data: pass (x_valid, y_valid) or a loader")
        if _is_batch(self.source):
            x, y = self.source
            return x, y
        if not isinstance(self.source, Iterable):
            if not callable(self.source):
                raise DataError(
                    f"the trusted data is of type {type(self.source).__name__}: pass (x_valid, "
                    "y_valid), a DataLoader or another iterable of such pairs, or a function"
                )
            return _pair_of(self.source(), "a function of trusted data must return")
        if self._returned is not None and self._reading is self.source:
            self._drawn, self._epoch, self._position = self._returned
            self._returned = None
            return self._drawn
        if self._iterator is None or self._reading is not self.source:
            self._open(skip=self._position)
        batch = self._draw(self._position)
        if batch is None:
            self._epoch, self._position = self._epoch + 1, 0
            self._open(skip=0)
            batch = self._draw(0)
        if batch is None:
            if iter(self.source) is self.source:
                raise DataError(
                    "the trusted batches are used up, and an iterator cannot be read again: give "
                    "a DataLoader or a list of batches"
                )
            raise DataError("the trusted loader is empty: give it at least one batch")
        self._drawn = _pair_of(batch, "a trusted loader must yield")
        self._position += 1
        return self._drawn

    def take_back(self, before: dict[str, int]) -> None:
        """Stand where `state_dict` told `before`; a batch drawn since comes again.

        A loader that raised is opened anew, for what raised cannot go on.
        """
        if self._drawn is not None:
            self._returned = (self._drawn, self._epoch, self._position)
        else:
            self._iterator = None
        self._epoch, self._position = before["epoch"], before["position"]

    def _open(self, skip: int) -> None:
        assert isinstance(self.source, Iterable)
        self._returned = None
        with _private_stream(self.source, self._epoch, 0):
            self._reading, self._iterator = self.source, iter(self.source)
        for position in range(skip):
            self._draw(position)

    def _draw(self, position: int) -> Any:
        assert self._iterator is not None
        with _private_stream(self.source, self._epoch, position):
            return next(self._iterator, None)

    def __getstate__(self) -> dict[str, int]:
        """Copies and pickles go on at the same batch of the source that they are given next."""
        return self.state_dict()

    def __setstate__(self, state: dict[str, int]) -> None:
        TrustedBatches.__init__(self)
        self.load_state_dict(state)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._epoch, self._position = state["epoch"], state["position"]
        self._iterator, self._returned = None, None


@contextmanager
def _private_stream(source: object, epoch: int, position: int) -> Iterator[None]:
    """Seed the global generators and those of a loader for one draw, then put them back."""
    place = epoch * 1_000_003 + position
    own = [(generator, generator.get_state()) for generator in _generators_of(source)]
    with replayed(None), globals_kept():
        torch.manual_seed(place)
        random.seed(place)
        np.random.seed(place % 2**32)
        for generator, _ in own:
            generator.manual_seed((generator.initial_seed() + place) % 2**63)
        try:
            yield
        finally:
            for generator, state in own:
                generator.set_state(state)


def _generators_of(source: object) -> list[torch.Generator]:
    """Those that a DataLoader, or one behind others, and its samplers draw from."""
    seen: dict[int, object] = {}
    waiting = [source]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen[id(one)] = one
            waiting += [getattr(one, name, None) for name in _INNER]
    return [one for one in seen.values() if isinstance(one, torch.Generator)]


_INNER = ("loader", "batch_sampler", "sampler", "generator")
"""Where loaders keep what draws for them."""


def _pair_of(batch: Any, who: str) -> tuple[Inputs, Tensor]:
    if not _is_pair(batch):
        raise DataError(
            f"{who} (x, y) batches, got {type(batch).__name__}: pass (x_valid, y_valid) or an "
            "iterable of such pairs"
        )
    return batch[0], batch[1]


def _is_pair(value: object) -> bool:
    """Two things, of which the second can be labels: a tensor, or a tuple or mapping of some."""
    return isinstance(value, tuple | list) and len(value) == 2 and _labels(value[1])


def _is_batch(value: object) -> TypeGuard[tuple[Any, Any]]:
    """A pair that is not two batches, each a pair of tensors of the same kinds."""
    if not (isinstance(value, tuple | list) and _is_pair(value)):
        return False
    first, second = value
    if isinstance(second, Tensor | Mapping) or isinstance(first, Tensor | Mapping):
        return True
    if not (len(first) == len(second) == 2 and _labels(first)):
        return True
    return any(_kind(one) != _kind(two) for one, two in zip(first, second, strict=True))


def _labels(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_labels, value.values()))
    if isinstance(value, tuple | list):
        return len(value) > 0 and all(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor)


def _kind(value: Tensor) -> tuple[torch.dtype, torch.Size]:
    """What the batches of a sequence have in common."""
    return value.dtype, value.shape[1:]
