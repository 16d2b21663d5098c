"""Columns of a table whose cells are text, and numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from deepteach.data.tables.categories import MISSING
from deepteach.data.tables.sheets import THOUSANDS
from deepteach.data.texts import Texts
from deepteach.data.validation import in_message, is_number
from deepteach.errors import DataError

_TRUTH = {"True": 1.0, "False": 0.0, "TRUE": 1.0, "FALSE": 0.0, "true": 1.0, "false": 0.0}
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")


def numbers_in(
    columns: Mapping[str, Texts], where: Callable[[int], str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The columns as floats (n, 1), and what to tell about how they were read.

    Args:
        columns: `(n,)` cells by the name of their column.
        where: of a row, what goes before a message.

    Raises:
        DataError: a cell that is no number, or may be one of two.
    """
    found, notes = {}, []
    comma = _decimal_comma(columns, where)
    if comma is not None:
        notes.append(f"commas in numbers are read as decimal points, e.g. '{comma}'")
    truths = False
    for name, cells in columns.items():
        if cells.hold("_"):  # which Python's numbers may have: 1_0
            raise DataError(_no_number(name, cells, where))
        try:
            values = np.fromiter(map(float, cells), np.float64, len(cells))
        except ValueError:
            try:
                values = np.fromiter(map(_number, cells), np.float64, len(cells))
            except ValueError as error:
                raise DataError(_no_number(name, cells, where)) from error
            truths = truths or any(cell in _TRUTH for cell in cells)
        found[name] = values[:, None]
    if truths:
        notes.append("True and False are read as 1 and 0")
    return found, notes


def _number(cell: str) -> float:
    return _TRUTH[cell] if cell in _TRUTH else float(cell.replace(",", "."))


def _decimal_comma(columns: Mapping[str, Texts], where: Callable[[int], str]) -> str | None:
    """The first number with a decimal comma; refuses commas that may be something else."""
    first: tuple[int, str] | None = None
    plain, points, thousands = True, False, True
    for cells in columns.values():
        points = points or cells.hold(".")
        if not cells.hold(","):
            continue
        for row, cell in enumerate(cells):
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
            f"{where(row)}: '{in_message(cell)}' holds a comma that may part decimals or "
            "thousands: write numbers with a point, and without separators"
        )
    return cell


def _no_number(column: str, cells: Texts, where: Callable[[int], str]) -> str:
    """What to say of the first cell that is no number: that it is missing, or text."""
    odd = [row for row, cell in enumerate(cells) if not (cell in _TRUTH or _is_number(cell))]
    row, cell = odd[0], cells[odd[0]]
    told = f"{where(row)}: column '{column}' is '{in_message(cell)}'"
    if len(odd) == len(cells) and cell.lower() not in MISSING:
        return f"{told}, expected a number: write it as 1234.5, without separators and signs"
    if cell.lower() not in MISSING:
        return (
            f"{told}, expected a number as in {len(cells) - len(odd)} of {len(cells)} rows: "
            "correct it, or write no number in that column, so that its cells are categories"
        )
    count = sum(cell.lower() in MISSING for cell in cells)
    return (
        f"{told}, a missing value ({count} of {len(cells)} rows have none there): expected a "
        "number; fill such cells or remove the rows"
    )


def _is_number(cell: str) -> bool:
    return is_number(cell.replace(",", "."))
