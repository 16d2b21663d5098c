"""Rows are told apart by a hash of each."""

from __future__ import annotations

import hashlib

import numpy as np

from deepteach.data.repeats import digests
from deepteach.data.validation import ROWS_AT_ONCE


def test_a_digest_is_of_its_row_alone() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(3, ROWS_AT_ONCE + 5)).astype(np.float32).T  # rows are not contiguous
    found = digests(x)
    assert found.shape == (ROWS_AT_ONCE + 5, 16)
    for row in (0, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 4):
        expected = hashlib.blake2b(x[row].tobytes(), digest_size=16).digest()
        assert found[row].tobytes() == expected
    assert digests(x[:0]).shape == (0, 16)
