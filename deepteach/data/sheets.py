"""Read csv files, as spreadsheets and data frames write them, as named columns of text.

Read: separators , ; tab and |, an index column, an empty last column. Each of these is told.
"""

from __future__ import annotations

import csv
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from deepteach.data.memory import refuse_too_large
from deepteach.data.splits import PARTS, parts_named
from deepteach.data.texts import Texts, TextsMaker
from deepteach.data.validation import is_number
from deepteach.errors import DataError
from deepteach.names import brief, hint

SPECIAL = ("label", "label_clean", "split")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")
_TEXT = 10
"""Times the size of a file that short cells take as text, and the numbers that they are."""
_AT_ONCE = 1024
"""Rows that are held as Python's own texts at a time."""


@dataclass(frozen=True)
class Sheet:
    """The cells of a file by column, stripped, and the line `(n,)` that each row ends on."""

    path: Path
    header: list[str]
    columns: list[Texts]
    lines: np.ndarray
    separator: str

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str) -> Texts:
        return self.columns[self.header.index(name)]

    def without(self, place: int) -> Sheet:
        """The same without one column."""
        rest = [i for i in range(len(self.header)) if i != place]
        header, columns = [self.header[i] for i in rest], [self.columns[i] for i in rest]
        return Sheet(self.path, header, columns, self.lines, self.separator)


def read_sheet(path: Path) -> tuple[Sheet, list[str]]:
    """The sheet in a file, without columns of no name, and what to tell of it.

    Raises:
        DataError: it cannot be read, with the line; or it would not fit.
    """
    return _named(_read(path))


def _read(path: Path) -> Sheet:
    try:
        refuse_too_large(_TEXT * path.stat().st_size, f"{path} as text")
        with open(path, newline="", encoding="utf-8-sig") as file:
            separator = separator_of(file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            columns, lines = [TextsMaker() for _ in header], array("q")
            rows = _rows(path, reader, header, separator, lines)
            while part := list(islice(rows, _AT_ONCE)):
                for column, cells in zip(columns, zip(*part, strict=True), strict=True):
                    column.extend(cells)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: expected a csv file") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} cannot be read as csv ({brief(error)}): save it as UTF-8"
        ) from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as csv ({brief(error)})") from error
    if not lines:
        raise DataError(f"{path} has no rows below its header")
    cells = [column.done() for column in columns]
    return Sheet(path, header, cells, np.array(lines), separator)


def _rows(
    path: Path, reader: Any, header: list[str], separator: str, lines: array[int]
) -> Iterator[list[str]]:
    """The cells of each row that is not empty; the line that it ends on is noted."""
    for row in reader:
        if not row:
            continue
        if len(row) != len(header):
            raise DataError(
                f"{path} line {reader.line_num} has {len(row)} cells, the header has "
                f"{len(header)} (separated by {_SEPARATORS[separator]}): give every row as many"
            )
        lines.append(reader.line_num)
        yield [cell.strip() for cell in row]


def separator_of(header: str) -> str:
    """The sign that parts the header into most cells; quoted cells hold none."""
    counts = {sign: len(next(csv.reader([header], delimiter=sign), [])) for sign in _SEPARATORS}
    return max(counts, key=lambda sign: counts[sign])


def _named(sheet: Sheet) -> tuple[Sheet, list[str]]:
    """Without the columns of no name that data frames and spreadsheets add; what to tell."""
    path, notes = sheet.path, []
    for cell in sheet.header:
        if is_number(cell):
            raise DataError(
                f"{path} line 1 holds the number '{cell}': expected a header row with the "
                "names of the columns"
            )
    if sheet.separator != ",":
        notes.append(f"the cells of {path.name} are separated by {_SEPARATORS[sheet.separator]}")
    last = len(sheet.header) - 1
    if last > 0 and not sheet.header[last] and not any(sheet.columns[last]):
        sheet = sheet.without(last)
        notes.append("the last column has no name and no cells: not used")
    if len(sheet.header) > 1 and sheet.header[0] in ("", "Unnamed: 0"):
        cell, count = Counter(sheet.columns[0]).most_common(1)[0]
        if count > 1:
            raise DataError(
                f"{path} line 1: the first column has no name, and is no index, for it repeats "
                f"'{cell}': name it, or remove it"
            )
        sheet = sheet.without(0)
        notes.append("the first column has no name: an index of the rows, not used")
    for cell in sheet.header:
        if not cell or sheet.header.count(cell) > 1:
            raise DataError(f"{path} line 1: column name '{cell}' is empty or repeated")
    return sheet, notes


def special_columns(
    path: Path, header: Sequence[str], group: str | None, more: Sequence[str] = ()
) -> dict[str, str]:
    """The columns label, label_clean and split, in whatever case, and those of `more` and `group`.

    Raises:
        DataError: two columns of one such name, or no column of that group.
    """
    found: dict[str, str] = {}
    for key in (*SPECIAL, *more):
        named = [c for c in header if c.lower() == key]
        if len(named) > 1:
            raise DataError(f"{path} has columns {' and '.join(named)}: keep one of them")
        if named:
            found[key] = named[0]
    if group is not None:
        if group not in header or group in found.values():
            others = [c for c in header if c not in found.values()]
            raise DataError(f"{path} has no column {group!r} of groups{hint(group, others)}")
        found["group"] = group
    return found


GUESSED = "no column 'label': the last, "
"""How the note begins that says which column was taken for the labels."""


def last_as_label(path: Path, header: Sequence[str], special: dict[str, str]) -> list[str]:
    """Take the last column for the labels where none is named so; what to tell of it.

    Raises:
        DataError: no column is left for them, or for features.
    """
    notes = []
    if "label" not in special:
        rest = [c for c in header if c not in special.values()]
        if not rest:
            raise DataError(f"{path} has no label column: expected one named 'label'")
        special["label"] = rest[-1]
        notes.append(f"{GUESSED}'{rest[-1]}', holds the labels")
    if not set(header) - set(special.values()):
        raise DataError(f"{path} has no feature column beside '{special['label']}'")
    return notes


def by_part(
    path: Path,
    parts: np.ndarray,
    inputs: Callable[[str, np.ndarray], Any],
    labels: dict[str, np.ndarray],
    groups: Texts | list[str] | None,
) -> dict[str, Any]:
    """Arguments of `from_arrays`: the samples of each part, numbered as the rows of the file.

    Args:
        path: the file.
        parts: `(n,)` the part that each row belongs to.
        inputs: `(part, rows)` to the inputs of those rows.
        labels: `(n,)` by label and, where known, label_clean.
        groups: `(n,)` sources.

    Raises:
        DataError: no row is one of the training samples.
    """
    arrays: dict[str, Any] = {}
    for part in PARTS:
        chosen = np.flatnonzero(parts == part)
        if not len(chosen):
            continue
        arrays[f"x_{part}"], arrays[f"y_{part}"] = inputs(part, chosen), labels["label"][chosen]
        if part != "test":
            arrays[f"rows_{part}"] = chosen
        if part == "train" and "label_clean" in labels:
            arrays["y_clean"] = labels["label_clean"][chosen]
        if part == "train" and groups is not None:
            arrays["group_train"] = [sys.intern(groups[int(i)]) for i in chosen]
    if "x_train" not in arrays:
        raise DataError(f"{path} has no row whose split is 'train'")
    return arrays


def groups_in(sheet: Sheet, column: str | None) -> Texts | None:
    """The source of each row. Raises DataError for an empty one."""
    groups = None if column is None else sheet.column(column)
    if groups is not None and "" in groups:
        line = sheet.lines[groups.index("")]
        raise DataError(f"{sheet.path} line {line}: column '{column}' is empty: name every source")
    return groups


def labels_in(sheet: Sheet, special: dict[str, str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """By label and label_clean, and what to tell: numbers where all are that, else text.

    They are coded by `from_arrays`. Where cells are not parted by commas, 0,5 is a number.
    """
    given: dict[str, Sequence[str]] = {
        k: sheet.column(special[k]) for k in ("label", "label_clean") if k in special
    }
    for labels in given.values():
        if "" in labels:
            line = sheet.lines[labels.index("")]
            raise DataError(
                f"{sheet.path} line {line}: the label is empty ({labels.count('')} of "
                f"{len(labels)} are): give it, or remove the row"
            )
    names = {label for labels in given.values() for label in labels}
    notes = []
    commas = sorted(name for name in names if "," in name)
    points = {name: name.replace(",", ".") for name in names}
    if commas and sheet.separator != "," and all(map(is_number, points.values())):
        if any("." in name for name in names) or all(map(THOUSANDS.fullmatch, commas)):
            raise DataError(
                f"{sheet.path}: the label '{commas[0]}' holds a comma that may part decimals or "
                "thousands: write numbers with a point, and without separators"
            )
        notes.append(f"commas in labels are read as decimal points, e.g. '{commas[0]}'")
        given = {k: [points[label] for label in labels] for k, labels in given.items()}
        names = set(points.values())
    if not all(map(is_number, names)):
        return {k: np.array(list(labels)) for k, labels in given.items()}, notes
    numbers = {k: np.fromiter(map(float, v), float, len(v)) for k, v in given.items()}
    for key, values in numbers.items():
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise DataError(
                f"{sheet.path} line {sheet.lines[wrong[0]]}: the label "
                f"'{given[key][wrong[0]]}' is no finite number: give it, or remove the row"
            )
    return numbers, notes


def parts_in(sheet: Sheet, column: str | None) -> np.ndarray:
    """Of each row the part that it belongs to."""
    if column is None:
        return np.full(len(sheet), "train")
    return parts_named(
        sheet.column(column), column, lambda row: f"{sheet.path} line {sheet.lines[row]}"
    )
