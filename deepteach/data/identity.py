"""What a data set is known by: whether a run that goes on has the data that it began with."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from deepteach.data.dataset import Data
from deepteach.data.rows import fingerprint
from deepteach.data.validation import as_array
from deepteach.names import expanded

_ROWS = 4096
"""Of the inputs, so that large ones are not read through."""

_NUMBERS = 2**22
"""Of the rows of a sketch, at most."""

_ROUNDING = 1e-2
"""Of the size of inputs, by which a sketch of the same ones may differ."""

_BLOCK = 2**16
"""Bytes of a file that are read at a time; of a large one, as many blocks as there are `_ROWS`."""


def identity_of(data: Data) -> dict[str, str]:
    """By `labels`, with the rows that they are of, with their `sources`, too, and by `inputs`.

    Without sources the first two are the same. Earlier versions called `labels` what is `sources`
    now. Of inputs some rows are read.

    Inputs are told apart from labels because a file of an image may be decoded to other bits by
    another version of a library.
    """
    given = (data.y_train, data.y_valid, data.y_test)
    learned = (None if y is None else data.task.learned(y) for y in given)
    labels = (*learned, data.rows)
    inputs = [fingerprint(x) for x in (data.x_train, data.x_valid, data.x_test)]
    some = [None if x is None else x[:: -(-len(x) // _ROWS)] for x in inputs]
    return {
        "labels": _digest((*labels, None)),
        "sources": _digest((*labels, data.group)),
        "inputs": _digest(some),
    }


def sketch_of(data: Data) -> dict[str, list[float]]:
    """Of inputs in memory, by part, some sums over rows and columns, and their size at the end.

    By bits alone, the rounding of another machine would be other data (`same_sketch`).
    """
    found = {}
    for name, x in ("x_train", data.x_train), ("x_valid", data.x_valid), ("x_test", data.x_test):
        if isinstance(x, torch.Tensor):
            rows = max(1, min(_ROWS, _NUMBERS // max(x[0].numel(), 1)))
            some = x[:: -(-len(x) // rows)].flatten(1).float()
            rates = torch.arange(2.0, 10.0).sqrt()
            left, right = (torch.outer(rates, torch.arange(n)).cos() for n in some.shape)
            sums = ((left @ some) * right).sum(1) / some.numel() ** 0.5
            found[name] = [*sums.tolist(), float(some.square().mean().sqrt())]
    return found


def same_sketch(one: list[float], other: list[float]) -> bool:
    """Whether inputs differ by no more than rounding, or than how an image is decoded."""
    bound = _ROUNDING * max(one[-1], other[-1])
    return all(abs(a - b) <= bound for a, b in zip(one, other, strict=True))


def file_of(spec: str) -> str | None:
    """What the file that `spec` names holds, whatever a seed makes of it; None for no single file.

    Of a large file its size and blocks of it, evenly spaced.
    """
    path = expanded(spec.partition(":")[2])
    try:
        size = path.stat().st_size
        if not path.is_file():
            return None
        found = hashlib.blake2b(f"{size}".encode(), digest_size=16)
        with path.open("rb") as file:
            for start in range(0, size, max(_BLOCK, size // _ROWS)):
                file.seek(start)
                found.update(file.read(_BLOCK))
    except OSError:  # it is no file, or was moved since it was read
        return None
    return found.hexdigest()


def _digest(parts: list[torch.Tensor | None] | tuple[torch.Tensor | None, ...]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        array = np.ascontiguousarray(np.zeros(0) if part is None else as_array(part))
        found.update(f"{array.shape} {array.dtype.str}".encode())
        found.update(array.data)
    return found.hexdigest()
