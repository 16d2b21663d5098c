"""Samples that occur more than once: within the training set, and across to the trusted one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepteach.data.scaling import compact
from deepteach.data.validation import ROWS_AT_ONCE, as_array
from deepteach.errors import DataError

SHARE = 0.01
"""Of the trusted samples that may also be training samples."""

FEWEST = 10
"""Such samples, or a tenth of the trusted ones where that is less, are no coincidence."""


@dataclass(frozen=True)
class Keys:
    """`(n, 16)` bytes of the training samples and of the trusted ones, equal where those are."""

    train: np.ndarray
    valid: np.ndarray

    @classmethod
    def of(cls, x_train: Any, x_valid: Any, *, wide: bool = False) -> Keys:
        """Of arrays, tensors, or samples that are read on access, all before scaling or after.

        `wide`: as in `compact`, of those that are read.
        """
        return cls(*(_digests(x, wide) for x in (x_train, x_valid)))


def digests(x: np.ndarray) -> np.ndarray:
    """`(n, 16)` bytes of each row, equal where rows are, in float32 or float64."""
    found = np.empty((len(x), 16), np.uint8)
    for start in range(0, len(x), ROWS_AT_ONCE):
        part = x[start : start + ROWS_AT_ONCE]
        rows = map(np.ascontiguousarray, _shortest(part) if part.dtype == np.float64 else part)
        some = b"".join(hashlib.blake2b(row.data, digest_size=16).digest() for row in rows)
        found[start : start + ROWS_AT_ONCE] = np.frombuffer(some, np.uint8).reshape(-1, 16)
    return found


def _shortest(x: np.ndarray) -> list[np.ndarray]:
    """The rows, each as float32 where that holds it exactly."""
    with np.errstate(over="ignore"):
        short = x.astype(np.float32)
    exact = (short == x).reshape(len(x), -1).all(1)
    return [short[i] if exact[i] else x[i] for i in range(len(x))]


def _digests(x: Any, wide: bool) -> np.ndarray:
    known = getattr(x, "digests", None)
    return digests(compact(as_array(x), wide=wide)) if known is None else known.numpy()


@dataclass(frozen=True)
class Repeats:
    """Of n training samples and m trusted ones behind them, the first place of each one's key."""

    first: np.ndarray  # (n + m,)
    count: int  # n

    @classmethod
    def of(cls, keys: Keys) -> Repeats:
        """By sorting, in arrays: sets of Python's bytes would take 200 bytes a sample."""
        halves = np.concatenate([keys.train, keys.valid]).view(np.uint64)
        order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: the first place comes first
        new = np.ones(len(order), bool)
        new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(1)
        first = np.empty_like(order)
        first[order] = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
        return cls(first, len(keys.train))

    def within(self, y_train: np.ndarray, rows: np.ndarray) -> str | None:
        """How many training samples repeat an earlier one, and how many of them contradict it."""
        own = self.first[: self.count]
        at = np.flatnonzero(own != np.arange(self.count))
        if not len(at):
            return None
        differ = y_train[at] != y_train[own[at]]
        other = int(differ.reshape(len(at), -1).any(1).sum())
        return (
            f"{len(at)} of {self.count} training rows repeat an earlier one (first: row "
            f"{rows[at[0]]} is row {rows[own[at[0]]]}), {other or 'none'} of them with another "
            "label"
        )

    def across(
        self, rows: np.ndarray, rows_valid: np.ndarray | None, *, refuse: bool = True
    ) -> str | None:
        """How many trusted samples are also training samples.

        Some data repeats itself (blank images, coarse tables) and a few pairs may be chance. As
        many as `FEWEST`, more than `SHARE` of the trusted samples, and more than twice the share
        of training samples that have a twin in the training set are not: the teacher would be
        judged on what the student has learnt by heart. Raises DataError then, if `refuse`.
        """
        trusted = self.first[self.count :]
        found = np.flatnonzero(trusted < self.count)
        if not len(found):
            return None
        later, earlier = found[0], trusted[found[0]]
        example = (
            f"x_valid[{later}] is x_train[{rows[earlier]}]"
            if rows_valid is None
            else f"row {rows_valid[later]} is row {rows[earlier]}"
        )
        text = (
            f"{len(found)} of {len(trusted)} validation rows are also training rows (first: "
            f"{example})"
        )
        counts = np.bincount(self.first[: self.count])
        natural = counts[counts > 1].sum() / self.count
        bound = max(SHARE, 2 * natural)
        least = max(2, min(FEWEST, len(trusted) / 10))
        if refuse and len(found) >= least and len(found) / len(trusted) > bound:
            raise DataError(
                f"{text}, more than {bound:.0%} of them: the teacher would be judged on samples "
                "that the student learns by heart; remove them from one of the two"
            )
        return f"{text}: the trusted set should be disjoint"
