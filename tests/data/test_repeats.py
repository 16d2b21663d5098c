"""Rows are told apart by a hash of each."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from deepteach.data.repeats import Keys, Repeats, digests
from deepteach.data.validation import ROWS_AT_ONCE
from deepteach.errors import DataError


def test_a_digest_is_of_its_row_alone() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(3, ROWS_AT_ONCE + 5)).astype(np.float32).T  # rows are not contiguous
    found = digests(x)
    assert found.shape == (ROWS_AT_ONCE + 5, 16)
    for row in (0, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 4):
        expected = hashlib.blake2b(x[row].tobytes(), digest_size=16).digest()
        assert found[row].tobytes() == expected
    assert digests(x[:0]).shape == (0, 16)


@pytest.mark.parametrize(
    ("trusted", "twins", "refused"),
    [(40, 2, False), (40, 4, True), (8, 1, False), (8, 2, True), (900, 9, False), (900, 10, True)],
)
def test_a_few_trusted_rows_may_be_training_rows(trusted: int, twins: int, refused: bool) -> None:
    x = np.arange(2000, dtype=np.float32)[:, None]
    valid = np.concatenate([x[:twins], 5000 + x[: trusted - twins]])
    repeats = Repeats.of(Keys.of(x, valid))
    rows = np.arange(2000)
    if refused:
        with pytest.raises(DataError, match=f"{twins} of {trusted} validation rows .* by heart"):
            repeats.across(rows, None)
    else:
        told = repeats.across(rows, None)
        assert told is not None and told.startswith(f"{twins} of {trusted} validation rows")
