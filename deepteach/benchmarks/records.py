"""Benchmarks as CSV files that grow by a row and are read back."""

from __future__ import annotations

import csv
from dataclasses import fields
from pathlib import Path
from typing import Any

from deepteach.benchmarks.method_cost import MethodCost
from deepteach.benchmarks.update_cost import UpdateCost
from deepteach.errors import ConfigError


def refuse_overwrite(path: Path) -> None:
    """Before anything is measured: results are not written over."""
    if path.exists():
        raise ConfigError(f"{path} exists: move it away, or name another file by --out")


def append(row: UpdateCost | MethodCost, path: Path) -> None:
    """Add a row to a CSV file, which is made where there is none."""
    names = [field.name for field in fields(row)]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(names)
        values = [getattr(row, name) for name in names]
        writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in values])


def read_costs(path: Path) -> list[UpdateCost]:
    """The rows of a file that `append` wrote. Raises ConfigError where it is none."""
    whole, text = ("window", "batch", "interval", "repeats", "threads"), ("row", "optimizer")
    try:
        with path.open(newline="") as file:
            found = []
            for line in csv.DictReader(file):
                values: dict[str, Any] = {}
                for name, value in line.items():
                    kept = name in (*text, "student", "torch")
                    number = int if name in whole else float
                    values[name] = value if kept else number(value) if value else None
                found.append(UpdateCost(**values))
            return found
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} holds no rows of a bench ({error}): name another --out"
        ) from None
