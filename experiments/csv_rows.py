"""Rows of measurements, added to a CSV file as they come, so that a script can go on from them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def append(path: Path, columns: Sequence[str], line: dict[str, Any]) -> None:
    """Add one row; the columns' names come first in a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(line)
