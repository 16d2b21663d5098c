"""What a data set is known by: whether a run that goes on has the data that it began with."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from deepteach.data.dataset import Data
from deepteach.data.rows import fingerprint
from deepteach.data.validation import as_array

_ROWS = 4096
"""Of the inputs, so that large ones are not read through."""


def identity_of(data: Data) -> dict[str, str]:
    """By `labels`, with the rows and sources that they are of, and by `inputs`, of which some rows.

    Inputs are told apart from labels because a file of an image may be decoded to other bits by
    another version of a library.
    """
    given = (data.y_train, data.y_valid, data.y_test)
    learned = (None if y is None else data.task.learned(y) for y in given)
    labels = (*learned, data.rows, data.group)
    inputs = [fingerprint(x) for x in (data.x_train, data.x_valid, data.x_test)]
    some = [None if x is None else x[:: -(-len(x) // _ROWS)] for x in inputs]
    return {"labels": _digest(labels), "inputs": _digest(some)}


def _digest(parts: list[torch.Tensor | None] | tuple[torch.Tensor | None, ...]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        array = np.ascontiguousarray(np.zeros(0) if part is None else as_array(part))
        found.update(f"{array.shape} {array.dtype.str}".encode())
        found.update(array.data)
    return found.hexdigest()
