"""A small table of text cells, and its renderings: terminal, plain text, Markdown, CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from rich.text import Text

from deepteach.runs.storage import csv_text

UNKNOWN = "-"


@dataclass(frozen=True)
class TextTable:
    """A table as text: a title, column heads, rows of cells, and notes below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_rich(self) -> Table:
        table = Table(title=Text(self.title), caption=Text("\n".join(self.notes)) or None)
        for i, column in enumerate(self.columns):
            table.add_column(Text(column), justify="right" if i else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table

    def to_text(self) -> str:
        """Aligned columns in plain ASCII-safe text, never wrapped."""
        grid = [self.columns, *self.rows]
        widths = [max(len(_line(row[i])) for row in grid) for i in range(len(self.columns))]
        lines = [self.title]
        for number, row in enumerate(grid):
            cells = [
                _line(cell).rjust(width) if i else _line(cell).ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
            if number == 0:
                lines.append("  ".join("-" * width for width in widths))
        return "\n".join([*lines, *self.notes]) + "\n"

    def to_markdown(self) -> str:
        lines = [f"**{_line(self.title)}**", "", self.markdown_grid()]
        return "\n".join(lines + [f"\n{note}" for note in self.notes]) + "\n"

    def markdown_grid(self, *, numeric: bool = True) -> str:
        """Heads and rows alone; `numeric`: columns after the first are aligned to the right."""

        def row(cells: Iterable[str]) -> str:
            return "| " + " | ".join(_line(c).replace("|", "\\|") for c in cells) + " |"

        rule = ["---"] + ["---:" if numeric else "---"] * (len(self.columns) - 1)
        return "\n".join([row(self.columns), f"|{'|'.join(rule)}|", *map(row, self.rows)])

    def to_csv(self) -> str:
        return csv_text([self.columns, *self.rows])


def number(value: float | None, digits: int) -> str:
    """With that many decimals."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def percent(accuracy: float | None) -> str:
    """An accuracy in 0..1 as per cent with two decimals."""
    return UNKNOWN if accuracy is None else f"{100 * accuracy:.2f}"


def times(ratio: float | None) -> str:
    """A ratio, as in `1.23 x`."""
    return UNKNOWN if ratio is None else f"{ratio:.2f} x"


def mean_std(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± sample standard deviation; the mean alone of one value."""
    if not len(values):
        return UNKNOWN
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _line(text: str) -> str:
    """One line: a name with line breaks or control characters can't break the table."""
    return "".join(c if c.isprintable() else " " for c in text)
