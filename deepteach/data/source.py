"""What a load of data and a reader of files are asked for, and what a reader returns."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from deepteach.data.lazy import ACCESS, Access
from deepteach.errors import DataError
from deepteach.names import hint

Read = tuple[dict[str, Any], list[str]]
"""Arguments of `from_arrays`, and what the user must be told."""


@dataclass(frozen=True)
class Asked:
    """How files are to be read.

    Args:
        group: the column of a table that names the source of each sample.
        image_size: pixels of a side of images (default: width and height of the first).
        reading: how samples are read that are not in memory.
    """

    group: str | None = None
    image_size: int | None = None
    reading: Access = ACCESS


@dataclass(frozen=True)
class Wanted:
    """The data that are to be loaded, as `readers.load` was asked for them.

    Args:
        spec: what names them.
        seed: of the split into parts.
        valid_size: the number of trusted samples.
        group: the column that names the source of each sample.
        world: how they are changed before they are used.
        as_given: for a student of the user's own.
        task: what the labels are.
    """

    spec: str
    seed: int
    valid_size: int | None
    group: str | None
    world: str | None
    as_given: bool
    task: str


def refuse_group(group: str, columns: Iterable[str], taken: Collection[str], where: object) -> None:
    """Raises DataError: no column of sources, or one of those `taken` for something else."""
    if group in taken:
        raise DataError(f"column {group!r} of {where} names no sources: it is read otherwise")
    others = [column for column in columns if column not in taken]
    if group not in others:
        raise DataError(f"{where} has no column {group!r} of groups{hint(group, others)}")
