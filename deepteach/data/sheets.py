"""Read csv files, as spreadsheets and data frames write them, as named columns of text.

Read: separators , ; tab and |, an index column, an empty last column. Each of these is told.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepteach.data.memory import refuse_too_large
from deepteach.data.splits import PARTS, parts_named
from deepteach.errors import DataError
from deepteach.names import brief, hint

SPECIAL = ("label", "label_clean", "split")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_TEXT = 10
"""Times the size of a file that its cells take in memory as text, roughly."""


@dataclass(frozen=True)
class Sheet:
    """The cells of a file, stripped, and the line that each row ends on."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    separator: str

    def column(self, name: str) -> list[str]:
        place = self.header.index(name)
        return [row[place] for row in self.rows]

    def without(self, place: int) -> Sheet:
        """The same without one column."""
        rows = [row[:place] + row[place + 1 :] for row in self.rows]
        header = self.header[:place] + self.header[place + 1 :]
        return Sheet(self.path, header, rows, self.lines, self.separator)


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
    return Sheet(path, header, [r for r, _ in numbered], [n for _, n in numbered], separator)


def _separator(header: str) -> str:
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
        notes.append(f"no column 'label': the last, '{rest[-1]}', holds the labels")
    if not set(header) - set(special.values()):
        raise DataError(f"{path} has no feature column beside '{special['label']}'")
    return notes


def by_part(
    path: Path,
    parts: np.ndarray,
    inputs: Callable[[str, np.ndarray], Any],
    labels: dict[str, np.ndarray],
    groups: Sequence[str] | None,
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
            arrays["group_train"] = [groups[int(i)] for i in chosen]
    if "x_train" not in arrays:
        raise DataError(f"{path} has no row whose split is 'train'")
    return arrays


def groups_in(sheet: Sheet, column: str | None) -> list[str] | None:
    """The source of each row. Raises DataError for an empty one."""
    groups = None if column is None else sheet.column(column)
    if groups is not None and "" in groups:
        line = sheet.lines[groups.index("")]
        raise DataError(f"{sheet.path} line {line}: column '{column}' is empty: name every source")
    return groups


def labels_in(sheet: Sheet, special: dict[str, str]) -> dict[str, np.ndarray]:
    """By label and label_clean: numbers where all are that, else text; coded by `from_arrays`."""
    given = {k: sheet.column(special[k]) for k in ("label", "label_clean") if k in special}
    for labels in given.values():
        if "" in labels:
            line = sheet.lines[labels.index("")]
            raise DataError(
                f"{sheet.path} line {line}: the label is empty ({labels.count('')} of "
                f"{len(labels)} are): give it, or remove the row"
            )
    names = {label for labels in given.values() for label in labels}
    if not all(map(is_number, names)):
        return {k: np.array(labels) for k, labels in given.items()}
    numbers = {k: np.array([float(label) for label in v]) for k, v in given.items()}
    for key, values in numbers.items():
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise DataError(
                f"{sheet.path} line {sheet.lines[wrong[0]]}: the label "
                f"'{given[key][wrong[0]]}' is no finite number: give it, or remove the row"
            )
    return numbers


def parts_in(sheet: Sheet, column: str | None) -> np.ndarray:
    """Of each row the part that it belongs to."""
    if column is None:
        return np.full(len(sheet.rows), "train")
    return parts_named(
        sheet.column(column), column, lambda row: f"{sheet.path} line {sheet.lines[row]}"
    )


def is_number(text: str) -> bool:
    """Whether Python reads it as a float."""
    try:
        float(text)
    except ValueError:
        return False
    return True
