"""Read csv files as tables of numbers and categories.

Read: what `sheets` reads, decimal commas where the separator is another sign, True and False,
and columns of text as `categories`. Each of these is told. What is missing is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepteach.data.categories import MISSING, categories_of, is_text, notes_of
from deepteach.data.sheets import (
    THOUSANDS,
    Sheet,
    by_part,
    groups_in,
    labels_in,
    last_as_label,
    parts_in,
    read_sheet,
    row_numbers_note,
    special_columns,
)
from deepteach.data.source import Asked, Read
from deepteach.data.validation import in_message, is_number
from deepteach.errors import DataError

_TRUTH = {"True": 1.0, "False": 0.0, "TRUE": 1.0, "FALSE": 0.0, "true": 1.0, "false": 0.0}
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")


def table(path: Path, asked: Asked) -> Read:
    """A header row, columns of numbers or of text, and `label` (else the last column).

    Optional columns: `split` (train, valid, test), `label_clean`, and a group, by whatever
    name it is given. Samples are numbered as the rows of the file, the first 0.

    Raises:
        DataError: the file cannot be read, with the line.
    """
    sheet, notes = read_sheet(path)
    special = special_columns(path, sheet.header, asked.group)
    notes.extend(last_as_label(path, sheet.header, special))
    labels, told = labels_in(sheet, special)
    notes.extend(told)
    groups = groups_in(sheet, special.get("group"))
    parts = parts_in(sheet, special.get("split"))
    columns = [c for c in sheet.header if c not in special.values()]
    text = [
        categories_of(c, sheet.column(c), parts, _Lines(sheet))
        for c in columns
        if is_text(sheet.column(c))
    ]
    numbers = [c for c in columns if all(one.name != c for one in text)]
    read, told = _numbers(sheet, numbers)
    notes.extend([*notes_of(text), *told])
    read |= {one.name: one.columns for one in text}
    for column in columns:
        notes.extend(row_numbers_note(column, read[column][:, 0]))
    x = np.concatenate([read[c] for c in columns], 1, dtype=np.float64)
    return by_part(path, parts, lambda part, rows: x[rows], labels, groups), notes


@dataclass(frozen=True)
class _Lines:
    """Says which line a row ends on."""

    sheet: Sheet

    def __call__(self, row: int) -> str:
        return f"{self.sheet.path} line {self.sheet.lines[row]}"


def _numbers(sheet: Sheet, columns: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The columns as floats (n, 1), and what to tell about how they were read."""
    found, notes = {}, []
    comma = _decimal_comma(sheet, columns)
    if comma is not None:
        notes.append(f"commas in numbers are read as decimal points, e.g. '{comma}'")
    truths = False
    for name in columns:
        cells = sheet.column(name)
        if cells.hold("_"):  # which Python's numbers may have: 1_0
            raise DataError(_no_number(sheet, name))
        try:
            values = np.fromiter(map(float, cells), np.float64, len(cells))
        except ValueError:
            try:
                values = np.fromiter(map(_number, cells), np.float64, len(cells))
            except ValueError as error:
                raise DataError(_no_number(sheet, name)) from error
            truths = truths or any(cell in _TRUTH for cell in cells)
        found[name] = values[:, None]
    if truths:
        notes.append("True and False are read as 1 and 0")
    return found, notes


def _number(cell: str) -> float:
    return _TRUTH[cell] if cell in _TRUTH else float(cell.replace(",", "."))


def _decimal_comma(sheet: Sheet, columns: list[str]) -> str | None:
    """The first number with a decimal comma; refuses commas that may be something else."""
    first: tuple[int, str] | None = None
    plain, points, thousands = True, False, True
    for name in columns:
        points = points or sheet.column(name).hold(".")
        if not sheet.column(name).hold(","):
            continue
        for row, cell in enumerate(sheet.column(name)):
            if "," not in cell:
                continue
            first = (row, cell) if first is None or row < first[0] else first
            plain = plain and _DECIMAL_COMMA.fullmatch(cell) is not None
            thousands = thousands and THOUSANDS.fullmatch(cell) is not None
    if first is None:
        return None
    row, cell = first
    if not plain or points or thousands:
        raise DataError(
            f"{sheet.path} line {sheet.lines[row]}: '{in_message(cell)}' holds a comma that may "
            "part decimals or thousands: write numbers with a point, and without separators"
        )
    return cell


def _no_number(sheet: Sheet, column: str) -> str:
    """What to say of the first cell that is no number: that it is missing, or text."""
    cells = sheet.column(column)
    odd = [row for row, cell in enumerate(cells) if not (cell in _TRUTH or _is_number(cell))]
    row, cell = odd[0], cells[odd[0]]
    where = f"{_Lines(sheet)(row)}: column '{column}' is '{in_message(cell)}'"
    if len(odd) == len(cells) and cell.lower() not in MISSING:
        return f"{where}, expected a number: write it as 1234.5, without separators and signs"
    if cell.lower() not in MISSING:
        return (
            f"{where}, expected a number as in {len(cells) - len(odd)} of {len(cells)} rows: "
            "correct it, or write no number in that column, so that its cells are categories"
        )
    count = sum(cell.lower() in MISSING for cell in cells)
    return (
        f"{where}, a missing value ({count} of {len(cells)} rows have none there): expected a "
        "number; fill such cells or remove the rows"
    )


def _is_number(cell: str) -> bool:
    return is_number(cell.replace(",", "."))
