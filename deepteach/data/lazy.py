"""Samples that are read when they are needed, in the place of a tensor that holds them.

Symbols: n samples, b of a batch.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepteach.data.memory import refuse_too_large
from deepteach.data.reading import STEADY, Items, Request, Stream
from deepteach.data.scaling import Moments
from deepteach.data.survey import Survey, survey


@dataclass(frozen=True)
class Access:
    """How samples are read that are not in memory.

    Args:
        seed: of all that is drawn while a sample is read.
        workers: processes that read ahead; 0 reads in this one.
        as_given: as in `from_arrays`.
        say: is told what will be read, before it is.
        whole_bytes: bytes are no pixels, and are read as whole numbers.
    """

    seed: int = 0
    workers: int = 0
    as_given: bool = False
    say: Callable[[str], None] = lambda text: None
    whole_bytes: bool = False


ACCESS = Access()

DOUBLES_AT_ONCE = 2**17
"""Numbers that the CPU holds in double precision at a time while it scales them."""


class _Ahead:
    """The batches of an epoch that are on their way, and what is read out of turn."""

    def __init__(self, items: Items, workers: int) -> None:
        self.items, self.workers, self.epoch = items, workers, 0
        self._stream: Stream | None = None
        self._coming: deque[np.ndarray] = deque()
        self._answers: Iterator[Tensor] = iter(())

    def announce(self, epoch: int, parts: list[np.ndarray], *, pinned: bool) -> None:
        self.epoch, self._coming = epoch, deque(parts)
        self._answers = self._asked([Request(part, epoch) for part in parts], pinned)

    def read(self, places: np.ndarray) -> Tensor:
        """`(b, ...)` of these places: from what was announced, or else at once."""
        for ahead, coming in enumerate(self._coming):
            if np.array_equal(coming, places):
                for _ in range(ahead):  # passed over
                    self._coming.popleft()
                    next(self._answers)
                self._coming.popleft()
                return next(self._answers)
            if ahead:
                break  # only the next batch may be passed over
        return self.items.inputs(Request(places, self.epoch))

    def all(self, parts: list[np.ndarray], *, pinned: bool) -> Iterator[Tensor]:
        """One batch after the other, the same at any time; what was announced is given up."""
        self._coming.clear()
        yield from self._asked([Request(part, STEADY) for part in parts], pinned)

    def _asked(self, requests: list[Request], pinned: bool) -> Iterator[Tensor]:
        if self._stream is None:
            self._stream = Stream(self.items.inputs, self.workers, pinned=pinned)
        return self._stream.answers(requests)

    def close(self) -> None:
        """End the workers; what is asked next starts new ones."""
        self._coming.clear()
        self._answers = iter(())
        if self._stream is not None:
            self._stream.close()


class LazyRows:
    """`(n, ...)` inputs that are read on access, and scaled on the device that they are for.

    It answers to what `Samples` names, as a tensor does. Bytes stay bytes until the device.

    Args:
        items: the samples.
        found: what a pass over them said.
        workers: processes that read ahead; 0 reads in this one.
    """

    def __init__(self, items: Items, found: Survey, workers: int = 0) -> None:
        self.items, self.found = items, found
        self._ahead = _Ahead(items, workers)
        self._places = np.arange(len(items))
        self._moments: tuple[np.ndarray, np.ndarray] | None = None
        self._device = torch.device("cpu")

    @classmethod
    def of(
        cls, dataset: Any, name: str, reading: Access = ACCESS, *, draws: bool = True
    ) -> LazyRows:
        """The inputs of a map-style dataset, after one pass over it. Raises DataError."""
        items = Items(dataset, name, reading.seed, reading.as_given, draws, reading.whole_bytes)
        return cls(items, survey(items, reading.workers, reading.say), reading.workers)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._places), *self.found.shape)

    @property
    def raw_dtype(self) -> np.dtype[Any]:
        """As samples travel: bytes, whole numbers, float32, or float64 that will be scaled."""
        return self.found.kind

    @property
    def dtype(self) -> torch.dtype:
        """As samples arrive."""
        if self.raw_dtype.kind == "i" and self._moments is None:
            return torch.int32 if self.raw_dtype == np.int32 else torch.int64
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def moments(self) -> Moments:
        """Of all samples of the source, whichever are selected here."""
        return self.found.moments

    @property
    def digests(self) -> Tensor:
        return torch.from_numpy(self.found.digests[self._places])

    def dim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self._places)

    def to(self, device: torch.device) -> LazyRows:
        """The same samples, arriving on a device."""
        other = copy.copy(self)
        other._device = torch.device(device)
        return other

    def select(self, rows: Tensor) -> LazyRows:
        """Some of the samples, by index or mask."""
        other = copy.copy(self)
        other._places = self._places[rows.cpu().numpy()]
        return other

    def scaled(self, mean: np.ndarray, scale: np.ndarray) -> LazyRows:
        """The same samples, arriving as (x - mean) / scale."""
        other = copy.copy(self)
        other._moments = mean, scale
        return other

    def __getitem__(self, rows: Any) -> Tensor:
        """`(b, ...)` inputs of a slice, of indices or of a mask, read now unless announced."""
        places = self._places[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        return self._arrived(self._ahead.read(places))

    def split(self, size: int) -> Iterator[Tensor]:
        """All inputs in order, `size` at a time, as they are at any time of a run."""
        parts = [self._places[i : i + size] for i in range(0, len(self), size)]
        for raw in self._ahead.all(parts, pinned=self._pinned):
            yield self._arrived(raw)

    def announce(self, epoch: int, parts: list[Tensor]) -> None:
        """The rows of the epoch's next batches, in their order: they are read ahead."""
        places = [self._places[part.cpu().numpy()] for part in parts]
        self._ahead.announce(epoch, places, pinned=self._pinned)

    def held(self) -> np.ndarray:
        """All samples in memory, as they travel.

        Raises:
            DataError: they do not fit, before any is read.
        """
        size = int(np.prod(self.shape)) * (self.raw_dtype.itemsize + 4)
        refuse_too_large(size, f"{self.items.name} with {len(self)} samples")
        whole = np.empty(self.shape, self.raw_dtype)
        start = 0
        for raw in self._ahead.all(np.array_split(self._places, -(-len(self) // 64)), pinned=False):
            whole[start : start + len(raw)] = raw.numpy()
            start += len(raw)
        self.close()
        return whole

    def close(self) -> None:
        self._ahead.close()

    @property
    def _pinned(self) -> bool:
        return self._device.type == "cuda"

    def _arrived(self, raw: Tensor) -> Tensor:
        """On the device, scaled there in double precision, as `normalised` does."""
        x = raw.to(self._device, non_blocking=True)
        if self._moments is None:
            return x.float() if x.dtype in (torch.uint8, torch.float64) else x
        mean, scale = (torch.from_numpy(m).to(self._device) for m in self._moments)
        out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        rows = max(1, DOUBLES_AT_ONCE // x[0].numel()) if x.device.type == "cpu" else len(x)
        for part, own in zip(out.split(rows), x.split(rows), strict=True):
            part.copy_(own.double().sub_(mean).div_(scale))
        return out
