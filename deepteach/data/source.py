"""What a reader of files is asked for beside their path, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepteach.data.lazy import ACCESS, Access

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
