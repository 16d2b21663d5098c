"""Read csv files, as spreadsheets and data frames write them, as tables of numbers.

Read: separators , ; tab and |, decimal commas where the separator is another sign, an index
column, an empty last column, True and False. Each of these is told. What is missing is refused.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepteach.data.dataset import Read
from deepteach.data.splits import PARTS, part_named
from deepteach.errors import DataError
from deepteach.names import brief, hint

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SPECIAL = ("label", "label_clean", "split")
_MISSING = ("", "na", "n/a", "<na>", "null", "none", "?", "-")
_TRUTH = {"True": 1.0, "False": 0.0, "TRUE": 1.0, "FALSE": 0.0, "true": 1.0, "false": 0.0}
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")


@dataclass(frozen=True)
class _Sheet:
    """The cells of a file, stripped, and the line that each row ends on."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    separator: str

    def column(self, name: str) -> list[str]:
        place = self.header.index(name)
        return [row[place] for row in self.rows]

    def without(self, place: int) -> _Sheet:
        """The same without one column."""
        rows = [row[:place] + row[place + 1 :] for row in self.rows]
        header = self.header[:place] + self.header[place + 1 :]
        return _Sheet(self.path, header, rows, self.lines, self.separator)


def table(path: Path, group: str | None = None) -> Read:
    """A header row, numeric columns and `label` (else the last column).

    Optional columns: `split` (train, valid, test), `label_clean`, and `group`, by whatever
    name it is given. Samples are numbered as the rows of the file, the first 0.

    Raises:
        DataError: the file cannot be read, with the line.
    """
    sheet, notes = _named(_sheet(path))
    special = _special(sheet)
    if group is not None:
        if group not in sheet.header or group in special.values():
            others = [c for c in sheet.header if c not in special.values()]
            raise DataError(f"{path} has no column {group!r} of groups{hint(group, others)}")
        special["group"] = group
    if "label" not in special:
        rest = [c for c in sheet.header if c not in special.values()]
        if not rest:
            raise DataError(f"{path} has no label column: expected one named 'label'")
        special["label"] = rest[-1]
        notes.append(f"no column 'label': the last, '{rest[-1]}', holds the labels")
    columns = [c for c in sheet.header if c not in special.values()]
    if not columns:
        raise DataError(f"{path} has no feature column beside '{special['label']}'")
    x, told = _numbers(sheet, columns)
    notes.extend(told)
    labels = {k: sheet.column(special[k]) for k in ("label", "label_clean") if k in special}
    codes = _labels(sheet, labels)
    parts = _parts(sheet, special.get("split"))
    groups = None if group is None else sheet.column(group)
    if groups is not None and "" in groups:
        line = sheet.lines[groups.index("")]
        raise DataError(f"{path} line {line}: column '{group}' is empty: name every source")
    arrays: dict[str, Any] = {}
    for part in PARTS:
        chosen = np.flatnonzero(parts == part)
        if not len(chosen):
            continue
        arrays[f"x_{part}"], arrays[f"y_{part}"] = x[chosen], codes["label"][chosen]
        if part != "test":
            arrays[f"rows_{part}"] = chosen
        if part == "train" and "label_clean" in codes:
            arrays["y_clean"] = codes["label_clean"][chosen]
        if part == "train" and groups is not None:
            arrays["group_train"] = [groups[i] for i in chosen]
    if "x_train" not in arrays:
        raise DataError(f"{path} has no row whose split is 'train'")
    return arrays, notes


def _sheet(path: Path) -> _Sheet:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            separator = _separator(file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, strict=True)
            cells = ([cell.strip() for cell in row] for row in reader)
            header = next(cells, [])
            numbered = [(row, reader.line_num) for row in cells if row]
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: expected a csv file") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} cannot be read as csv ({brief(error)}): save it as UTF-8"
        ) from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as csv ({brief(error)})") from error
    if not numbered:
        raise DataError(f"{path} has no rows below its header")
    for row, line in numbered:
        if len(row) != len(header):
            raise DataError(
                f"{path} line {line} has {len(row)} cells, the header has {len(header)} "
                f"(separated by {_SEPARATORS[separator]}): give every row as many"
            )
    return _Sheet(path, header, [r for r, _ in numbered], [n for _, n in numbered], separator)


def _separator(header: str) -> str:
    """The sign that parts the header into most cells; quoted cells hold none."""
    counts = {sign: len(next(csv.reader([header], delimiter=sign), [])) for sign in _SEPARATORS}
    return max(counts, key=lambda sign: counts[sign])


def _named(sheet: _Sheet) -> tuple[_Sheet, list[str]]:
    """Without the columns of no name that data frames and spreadsheets add; what to tell."""
    path, notes = sheet.path, []
    for cell in sheet.header:
        if _is_number(cell):
            raise DataError(
                f"{path} line 1 holds the number '{cell}': expected a header row with the "
                "names of the columns"
            )
    if sheet.separator != ",":
        notes.append(f"the cells of {path.name} are separated by {_SEPARATORS[sheet.separator]}")
    last = len(sheet.header) - 1
    if last > 0 and not sheet.header[last] and not any(row[last] for row in sheet.rows):
        sheet = sheet.without(last)
        notes.append("the last column has no name and no cells: not used")
    first = [row[0] for row in sheet.rows] if sheet.header else []
    if len(sheet.header) > 1 and sheet.header[0] in ("", "Unnamed: 0"):
        if len(set(first)) < len(first):
            raise DataError(
                f"{path} line 1: the first column has no name, and is no index, for it repeats "
                f"'{max(first, key=first.count)}': name it, or remove it"
            )
        sheet = sheet.without(0)
        notes.append("the first column has no name: an index of the rows, not used")
    for cell in sheet.header:
        if not cell or sheet.header.count(cell) > 1:
            raise DataError(f"{path} line 1: column name '{cell}' is empty or repeated")
    return sheet, notes


def _special(sheet: _Sheet) -> dict[str, str]:
    """The columns label, label_clean and split, in whatever case they are written."""
    found: dict[str, str] = {}
    for key in _SPECIAL:
        named = [c for c in sheet.header if c.lower() == key]
        if len(named) > 1:
            raise DataError(f"{sheet.path} has columns {' and '.join(named)}: keep one of them")
        if named:
            found[key] = named[0]
    return found


def _numbers(sheet: _Sheet, columns: list[str]) -> tuple[np.ndarray, list[str]]:
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
            at = next(
                i for i, cell in enumerate(row) if cell not in _TRUTH and not _is_number(cell)
            )
            raise DataError(_no_number(sheet, cells, columns[at], row[at], at, line)) from error
    if any(cell in _TRUTH for row in cells for cell in row):
        notes.append("True and False are read as 1 and 0")
    return x, notes


def _points(
    sheet: _Sheet, cells: list[list[str]], commas: list[str]
) -> tuple[list[list[str]], str]:
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
    sheet: _Sheet, cells: list[list[str]], column: str, cell: str, place: int, line: int
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


def _labels(sheet: _Sheet, given: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Numbers where all labels are that, else text; coded by `from_arrays`."""
    for labels in given.values():
        if "" in labels:
            line = sheet.lines[labels.index("")]
            raise DataError(
                f"{sheet.path} line {line}: the label is empty ({labels.count('')} of "
                f"{len(labels)} are): give it, or remove the row"
            )
    names = {label for labels in given.values() for label in labels}
    if not all(map(_is_number, names)):
        return {k: np.array(labels) for k, labels in given.items()}
    numbers = {k: np.array([float(label) for label in v]) for k, v in given.items()}
    for key, values in numbers.items():
        wrong = np.flatnonzero(~(np.isfinite(values) & (values == np.trunc(values))))
        if len(wrong):
            raise DataError(
                f"{sheet.path} line {sheet.lines[wrong[0]]}: labels are not whole numbers "
                f"('{given[key][wrong[0]]}'): expected integers or names"
            )
    return numbers


def _parts(sheet: _Sheet, column: str | None) -> np.ndarray:
    """Of each row the part that it belongs to."""
    if column is None:
        return np.full(len(sheet.rows), "train")
    found = [part_named(cell) for cell in sheet.column(column)]
    if None in found:
        at = found.index(None)
        raise DataError(
            f"{sheet.path} line {sheet.lines[at]}: {column} is '{sheet.column(column)[at]}', "
            "expected train, valid or test"
        )
    return np.array(found)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
