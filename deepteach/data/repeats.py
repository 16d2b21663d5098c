"""Samples that occur more than once: within the training set, and across to the trusted one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepteach.data.scaling import compact
from deepteach.data.validation import as_array
from deepteach.errors import DataError

SHARE = 0.01
"""Of the trusted samples that may also be training samples, beyond a single coincidence."""


@dataclass(frozen=True)
class Keys:
    """`(n, 16)` bytes of the training samples and of the trusted ones, equal where those are."""

    train: np.ndarray
    valid: np.ndarray

    @classmethod
    def of(cls, x_train: Any, x_valid: Any) -> Keys:
        """Of arrays, tensors, or samples that are read on access, all before scaling or after."""
        return cls(*map(_digests, (x_train, x_valid)))


def digests(x: np.ndarray) -> np.ndarray:
    """`(n, 16)` bytes of each row, equal where rows are."""
    found = [hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16).digest() for row in x]
    return np.frombuffer(b"".join(found), np.uint8).reshape(len(x), 16)


def _digests(x: Any) -> np.ndarray:
    known = getattr(x, "digests", None)
    return digests(compact(as_array(x))) if known is None else known.numpy()


@dataclass(frozen=True)
class Repeats:
    """Keys of the training samples, by which twins are found."""

    keys: tuple[bytes, ...]
    first: dict[bytes, int]  # the place of the first sample of each key

    @classmethod
    def of(cls, train: np.ndarray) -> Repeats:
        """`train` `(n, 16)` as in `Keys`."""
        keys = tuple(map(bytes, train))
        return cls(keys, {key: i for i, key in reversed(list(enumerate(keys)))})

    def within(self, y_train: np.ndarray, rows: np.ndarray) -> str | None:
        """How many training samples repeat an earlier one, and how many of them contradict it."""
        twins = [(i, self.first[key]) for i, key in enumerate(self.keys) if self.first[key] != i]
        if not twins:
            return None
        at, earlier = twins[0]
        other = sum(bool(np.any(y_train[i] != y_train[j])) for i, j in twins)
        return (
            f"{len(twins)} of {len(self.keys)} training rows repeat an earlier one (first: row "
            f"{rows[at]} is row {rows[earlier]}), {other or 'none'} of them with another label"
        )

    def across(
        self,
        valid: np.ndarray,
        rows: np.ndarray,
        rows_valid: np.ndarray | None,
        *,
        refuse: bool = True,
    ) -> str | None:
        """How many trusted samples are also training samples.

        Some data repeats itself (blank images, coarse tables) and one pair may be chance. More
        than one, more than `SHARE` of the trusted samples, and more than twice the share of
        training samples that have a twin in the training set is not: the teacher would be
        judged on what the student has learnt by heart. Raises DataError then, if `refuse`.
        """
        keys = enumerate(map(bytes, valid))
        pairs = [(self.first[key], i) for i, key in keys if key in self.first]
        if not pairs:
            return None
        earlier, later = pairs[0]
        example = (
            f"x_valid[{later}] is x_train[{rows[earlier]}]"
            if rows_valid is None
            else f"row {rows_valid[later]} is row {rows[earlier]}"
        )
        text = (
            f"{len(pairs)} of {len(valid)} validation rows are also training rows (first: "
            f"{example})"
        )
        _, counts = np.unique(np.array(self.keys), return_counts=True)
        natural = counts[counts > 1].sum() / len(self.keys)
        bound = max(SHARE, 2 * natural)
        if refuse and len(pairs) > 1 and len(pairs) / len(valid) > bound:
            raise DataError(
                f"{text}, more than {bound:.0%} of them: the teacher would be judged on samples "
                "that the student learns by heart; remove them from one of the two"
            )
        return f"{text}: the trusted set should be disjoint"
