"""Read csv files as tables of numbers.

Read: what `sheets` reads, decimal commas where the separator is another sign, True and False.
Each of these is told. What is missing is refused.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from deepteach.data.sheets import (
    Sheet,
    by_part,
    groups_in,
    is_number,
    labels_in,
    last_as_label,
    parts_in,
    read_sheet,
    special_columns,
)
from deepteach.data.source import Asked, Read
from deepteach.errors import DataError

_MISSING = ("", "na", "n/a", "<na>", "null", "none", "?", "-")
_TRUTH = {"True": 1.0, "False": 0.0, "TRUE": 1.0, "FALSE": 0.0, "true": 1.0, "false": 0.0}
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")


def table(path: Path, asked: Asked) -> Read:
    """A header row, numeric columns and `label` (else the last column).

    Optional columns: `split` (train, valid, test), `label_clean`, and a group, by whatever
    name it is given. Samples are numbered as the rows of the file, the first 0.

    Raises:
        DataError: the file cannot be read, with the line.
    """
    sheet, notes = read_sheet(path)
    special = special_columns(path, sheet.header, asked.group)
    notes.extend(last_as_label(path, sheet.header, special))
    columns = [c for c in sheet.header if c not in special.values()]
    x, told = _numbers(sheet, columns)
    notes.extend(told)
    labels, groups = labels_in(sheet, special), groups_in(sheet, special.get("group"))
    parts = parts_in(sheet, special.get("split"))
    return by_part(path, parts, lambda part, rows: x[rows], labels, groups), notes


def _numbers(sheet: Sheet, columns: list[str]) -> tuple[np.ndarray, list[str]]:
    """The columns as floats (n, d), and what to tell about how they were read."""
    places = [sheet.header.index(name) for name in columns]
    cells = [[row[i] for i in places] for row in sheet.rows]
    notes = []
    commas = [cell for row in cells for cell in row if "," in cell]
    if commas:
        cells, told = _points(sheet, cells, commas)
        notes.append(told)
    x = np.empty((len(cells), len(columns)))
    for out, row, line in zip(x, cells, sheet.lines, strict=True):
        try:
            out[:] = [_TRUTH[cell] if cell in _TRUTH else float(cell) for cell in row]
        except ValueError as error:
            at = next(i for i, cell in enumerate(row) if cell not in _TRUTH and not is_number(cell))
            raise DataError(_no_number(sheet, cells, columns[at], row[at], at, line)) from error
    if any(cell in _TRUTH for row in cells for cell in row):
        notes.append("True and False are read as 1 and 0")
    return x, notes


def _points(sheet: Sheet, cells: list[list[str]], commas: list[str]) -> tuple[list[list[str]], str]:
    """Decimal commas as points, where they can be nothing else."""
    plain = all(_DECIMAL_COMMA.fullmatch(cell) for cell in commas)
    points = any("." in cell for row in cells for cell in row)
    if not plain or points or all(_THOUSANDS.fullmatch(cell) for cell in commas):
        row = next(i for i, row in enumerate(cells) if commas[0] in row)
        raise DataError(
            f"{sheet.path} line {sheet.lines[row]}: '{commas[0]}' holds a comma that may part "
            "decimals or thousands: write numbers with a point, and without separators"
        )
    read = [[cell.replace(",", ".") for cell in row] for row in cells]
    return read, f"commas in numbers are read as decimal points, e.g. '{commas[0]}'"


def _no_number(
    sheet: Sheet, cells: list[list[str]], column: str, cell: str, place: int, line: int
) -> str:
    """What to say of a cell that is no number: that it is missing, or text."""
    where = f"{sheet.path} line {line}: column '{column}' is '{cell}'"
    if cell.lower() not in _MISSING:
        return (
            f"{where}, expected a number; encode text as numbers and fill empty cells, or remove "
            "the column"
        )
    count = sum(row[place].lower() in _MISSING for row in cells)
    return (
        f"{where}, a missing value ({count} of {len(cells)} rows have none there): expected a "
        "number; fill such cells or remove the rows"
    )
