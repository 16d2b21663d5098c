"""Inputs by row: a tensor in memory, or samples that are read when they are needed.

Whoever trains or evaluates asks for rows and knows nothing else of where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class Samples(Protocol):
    """`(n, ...)` inputs: what is asked of them is what a tensor has."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def device(self) -> Any: ...
    def dim(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Tensor: ...
    def split(self, size: int, /) -> Iterable[Tensor]: ...
    def to(self, device: Any, /) -> Any: ...


class Readable(Samples, Protocol):
    """Inputs that are read, beside the questions that a tensor need not be asked."""

    @property
    def digests(self) -> Tensor:
        """`(n, 16)` bytes, equal where samples are."""
        ...

    def select(self, rows: Tensor, /) -> Readable:
        """Some rows, not read yet."""
        ...

    def announce(self, epoch: int, parts: list[Tensor], /) -> None:
        """The rows of the epoch's next batches, in their order: they are read ahead."""
        ...

    def close(self) -> None:
        """End the processes that read."""
        ...


def readable(x: Samples | None) -> Readable | None:
    """The inputs where they are read on demand, None where they are a tensor."""
    return None if x is None or isinstance(x, Tensor) else x  # type: ignore[return-value]


def select(x: Samples, rows: Tensor) -> Samples:
    """Some of the rows: a tensor is indexed, what is read stays unread."""
    lazy = readable(x)
    return x[rows.to(x.device)] if lazy is None else lazy.select(rows)


def chunks(x: Samples, size: int, device: torch.device) -> Iterator[Tensor]:
    """The rows in order, `size` at a time, on a device; never all of them at once."""
    if readable(x) is not None:
        yield from x.to(device).split(size)
        return
    for part in x.split(size):
        yield part.to(device)


def fingerprint(x: Samples | None) -> Tensor | None:
    """A tensor that is equal where the inputs are."""
    lazy = readable(x)
    return x if lazy is None else lazy.digests  # type: ignore[return-value]
