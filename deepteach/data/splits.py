"""The parts of a data set: their names, and how one is split off."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from deepteach.data.validation import in_message
from deepteach.errors import DataError

PARTS = ("train", "valid", "test")

_SPELLINGS = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "validate", "dev"),
    "test": ("test", "testing"),
}
_AROUND = ("set", "data", "dataset", "images", "imgs", "split", "seg", "folder")
"""Words that a part's name may have around it: train_set, Training Set, seg_train, trainset."""


def part_named(name: str) -> str | None:
    """The part that a folder or a cell names in one of its usual spellings, in any case."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word and word not in _AROUND]
    spelt = words[0].removesuffix("set") if len(words) == 1 else ""
    return next((part for part in PARTS if spelt in _SPELLINGS[part]), None)


def parts_named(cells: Sequence[str], column: str, place: Callable[[int], str]) -> np.ndarray:
    """Of each row the part that its cell names.

    Args:
        cells: `(n,)` what stands in the column.
        column: its name.
        place: a row, by its number, to where it stands in which file.

    Raises:
        DataError: a cell that names none.
    """
    found = [part_named(cell) for cell in cells]
    if None in found:
        row = found.index(None)
        raise DataError(
            f"{place(row)}: {column} is '{in_message(cells[row])}', expected train, valid or test"
        )
    return np.array(found)


def stratified_split(
    y: np.ndarray, size: int | float, seed: int, least: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (rest, part); part has `size` samples in the proportions of y.

    `size` is a count, or a fraction of len(y) if a float. Each class gives its share,
    rounded so that the sum is right, but at least `least` (the part may then be larger)
    and never its last sample.

    By hand, for scikit-learn's splitters refuse classes of one member, have no `least`, and
    draw other samples than the runs that are committed here.

    Raises:
        DataError: size is not in 1..len(y)-1.
    """
    total = len(y)
    wanted = round(size * total) if isinstance(size, float) else size
    if not 1 <= wanted < total:
        raise DataError(f"cannot split {wanted} samples off {total}: expected 1..{total - 1}")
    counts = np.bincount(y)
    share = counts * (wanted / total)
    take = np.floor(share).astype(np.int64)
    largest = np.argsort(take - share, kind="stable")  # by remainder, falling
    take[largest[: wanted - take.sum()]] += 1
    take = np.minimum(np.maximum(take, least), np.maximum(counts - 1, 0))
    generator = np.random.default_rng(seed)
    parts = [
        generator.permutation(np.flatnonzero(y == label))[:count]
        for label, count in enumerate(take)
    ]
    part = np.sort(np.concatenate(parts))
    return np.setdiff1d(np.arange(total), part), part
