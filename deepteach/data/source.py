"""What a reader of files is asked for beside their path, and what it returns."""

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


def refuse_group(group: str, columns: Iterable[str], taken: Collection[str], where: object) -> None:
    """Raises DataError: no column of sources, or one of those `taken` for something else."""
    if group in taken:
        raise DataError(f"column {group!r} of {where} names no sources: it is read otherwise")
    others = [column for column in columns if column not in taken]
    if group not in others:
        raise DataError(f"{where} has no column {group!r} of groups{hint(group, others)}")
