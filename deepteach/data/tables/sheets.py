"""Read csv files, as spreadsheets and data frames write them, as named columns of text.

Read: what `dialect` tells apart, columns of an index, columns without name and cells. Each of
these is told. Rows without cells are passed over, and are not numbered.
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
from deepteach.data.source import refuse_group
from deepteach.data.splits import PARTS, parts_named
from deepteach.data.tables.categories import MISSING
from deepteach.data.tables.dialect import Dialect, cells_of_any_length
from deepteach.data.texts import Texts, TextsMaker
from deepteach.data.validation import in_message, is_number, plain_number
from deepteach.errors import DataError
from deepteach.names import brief

SPECIAL = ("label", "label_clean", "split")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_NAMELESS = re.compile(r"(Unnamed: \d+(\.\d+)?)?")  # as pandas calls them when it writes them again
_INDEX = re.compile(r"(Unnamed: 0(\.\d+)?)?")
_FEW = 20
"""Different labels that are numbers, for one that is none: it is a mistake then, and no class."""
_NUMBERING = re.compile(
    r"(?i:(.*[\W_])?(id|index|idx|row|nr|no|number|key|#)|level_0)|.*[a-z]I[Dd]"
)
"""Names of columns that say which row it is."""
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
    dialect: Dialect

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str) -> Texts:
        return self.columns[self.header.index(name)]

    def where(self, row: int) -> str:
        """What goes before a message on it."""
        return f"{self.path} line {self.lines[row]}"

    def only(self, places: Sequence[int]) -> Sheet:
        """The same with some of the columns."""
        header, columns = [self.header[i] for i in places], [self.columns[i] for i in places]
        return Sheet(self.path, header, columns, self.lines, self.dialect)


def read_sheet(path: Path) -> tuple[Sheet, list[str]]:
    """The sheet in a file, without columns of no name, and what to tell of it.

    Raises:
        DataError: it cannot be read, with the line; or it would not fit.
    """
    return _named(_read(path))


def _read(path: Path) -> Sheet:
    try:
        with cells_of_any_length:
            return _whole(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: expected a csv file") from error
    except UnicodeError as error:
        raise DataError(
            f"{path} cannot be read as csv ({brief(error)}): save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{path} cannot be read as csv ({brief(error)}): close the quotes of its cells, and "
            "write a quote inside one twice"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read as csv ({brief(error)})") from error


def _whole(path: Path) -> Sheet:
    refuse_too_large(_TEXT * path.stat().st_size, f"{path} as text")
    dialect = Dialect.of(path)
    with dialect.open(path) as file:
        rows = dialect.rows(file)
        header = names_in(next(rows, (1, []))[1])
        columns, lines = [TextsMaker() for _ in header], array("q")
        cells = _cells(path, rows, header, dialect, lines)
        while part := list(islice(cells, _AT_ONCE)):
            for column, own in zip(columns, zip(*part, strict=True), strict=True):
                column.extend(own)
    if not lines:
        raise DataError(f"{path} has no rows below its header")
    return Sheet(path, header, [column.done() for column in columns], np.array(lines), dialect)


def names_in(header: Sequence[str]) -> list[str]:
    """The names of columns, each in one line."""
    return [" ".join(cell.split()) for cell in header]


def _cells(
    path: Path,
    rows: Iterator[tuple[int, list[str]]],
    header: list[str],
    dialect: Dialect,
    lines: array[int],
) -> Iterator[list[str]]:
    """The cells of each row; the line that it ends on is noted.

    Empty cells behind the last name may be there in some rows, and not in others.
    """
    width = len(header)
    named = max((i + 1 for i, name in enumerate(header) if name), default=0)
    for line, row in rows:
        if len(row) > width and not any(cell.strip() for cell in row[width:]):
            row = row[:width]
        elif named <= len(row) < width:
            row = [*row, *[""] * (width - len(row))]
        if len(row) != width:
            raise DataError(
                f"{path} line {line} has {len(row)} cells, the header has {width} (separated by "
                f"{dialect.called}): give every row as many"
            )
        lines.append(line)
        yield [cell.strip() for cell in row]


def _named(sheet: Sheet) -> tuple[Sheet, list[str]]:
    """Without the columns of no name that data frames and spreadsheets add; what to tell."""
    path, notes = sheet.path, []
    for cell in sheet.header:
        if is_number(cell):
            raise DataError(
                f"{path} line 1 holds the number '{cell}': expected a header row with the "
                "names of the columns"
            )
    if sheet.dialect.separator != ",":
        notes.append(f"the cells of {path.name} are separated by {sheet.dialect.called}")
    bare = [
        i
        for i, name in enumerate(sheet.header)
        if _NAMELESS.fullmatch(name) and not any(sheet.columns[i])
    ]
    if bare and len(bare) < len(sheet.header):
        last = bare == [len(sheet.header) - 1]
        where = "the last column has" if last else f"{len(bare)} columns have"
        sheet = sheet.only([i for i in range(len(sheet.header)) if i not in bare])
        notes.append(f"{where} no name and no cells: not used")
    while len(sheet.header) > 1 and _INDEX.fullmatch(sheet.header[0]):
        cell, count = Counter(sheet.columns[0]).most_common(1)[0]
        if count > 1:
            raise DataError(
                f"{path} line 1: the first column has no name, and is no index, for it repeats "
                f"'{in_message(cell)}': name it, or remove it"
            )
        sheet = sheet.only(range(1, len(sheet.header)))
        notes.append("the first column has no name: an index of the rows, not used")
    for cell in sheet.header:
        if not cell or sheet.header.count(cell) > 1:
            raise DataError(
                f"{path} line 1: column name '{cell}' is empty or repeated: give each column "
                "a name of its own"
            )
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
        refuse_group(group, header, found.values(), path)
        found["group"] = group
    return found


GUESSED = "no column 'label': the last, "
"""How the note begins that says which column was taken for the labels."""


_USUAL = ("labels", "target", "targets", "class", "y")
"""What columns of labels are called elsewhere."""


def last_as_label(path: Path, header: Sequence[str], special: dict[str, str]) -> list[str]:
    """Take the last column for the labels where none is named so; what to tell of it.

    Raises:
        DataError: no column is left for them, or for features; or another has a usual name of
            labels, and the last has none.
    """
    notes = []
    if "label" not in special:
        rest = [c for c in header if c not in special.values()]
        if not rest:
            raise DataError(f"{path} has no label column: expected one named 'label'")
        usual = [c for c in rest if c.lower() in _USUAL]
        if usual and rest[-1] not in usual:
            raise DataError(
                f"{path} has no column 'label', and '{usual[0]}' looks like the labels, not the "
                f"last, '{in_message(rest[-1])}': name the column of labels 'label', or make "
                f"'{usual[0]}' the last"
            )
        special["label"] = rest[-1]
        notes.append(f"{GUESSED}'{rest[-1]}', holds the labels")
    if not set(header) - set(special.values()):
        raise DataError(
            f"{path} has no feature column beside '{in_message(special['label'])}': give it one, "
            "and part the cells of a csv by commas, semicolons, tabs or bars"
        )
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
    """By label and label_clean, and what to tell: numbers where all are that, else text (01, too).

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
    _refuse_no_numbers(sheet, given, names)
    notes = []
    commas = sorted(name for name in names if "," in name)
    points = {name: name.replace(",", ".") for name in names}
    if commas and sheet.dialect.separator != "," and all(map(is_number, points.values())):
        if any("." in name for name in names) or all(map(THOUSANDS.fullmatch, commas)):
            raise DataError(
                f"{sheet.path}: the label '{commas[0]}' holds a comma that may part decimals or "
                "thousands: write numbers with a point, and without separators"
            )
        notes.append(f"commas in labels are read as decimal points, e.g. '{commas[0]}'")
        given = {k: [points[label] for label in labels] for k, labels in given.items()}
        names = set(points.values())
    if not all(map(plain_number, names)):
        return {k: np.array(list(labels)) for k, labels in given.items()}, notes
    numbers = {k: np.fromiter(map(float, v), float, len(v)) for k, v in given.items()}
    for key, values in numbers.items():
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise DataError(
                f"{sheet.where(wrong[0])}: the label "
                f"'{given[key][wrong[0]]}' is no finite number: give it, or remove the row"
            )
    return numbers, notes


def _refuse_no_numbers(sheet: Sheet, given: dict[str, Sequence[str]], names: set[str]) -> None:
    """Raises DataError where labels are numbers, but for words of no value or very few others."""
    odd = {name for name in names if not is_number(name.replace(",", "."))}
    missing = {name for name in odd if name.lower() in MISSING}
    if not odd or len(odd) == len(names) or (odd != missing and len(names) < _FEW * len(odd)):
        return
    key, row = next((k, i) for k, v in given.items() for i, name in enumerate(v) if name in odd)
    count = sum(name in odd for name in given[key])
    raise DataError(
        f"{sheet.where(row)}: the label is '{in_message(given[key][row])}', "
        f"expected a number as in {len(sheet) - count} of {len(sheet)} rows: correct it, or remove "
        "the row"
    )


def row_numbers_note(name: str, values: np.ndarray) -> list[str]:
    """What to tell of a column of features `(n,)` that says which row it is."""
    if not _NUMBERING.fullmatch(name) or (np.diff(values) != 1).any():
        return []
    return [
        f"column '{name}' numbers the rows, and is used as any other: remove it if it says no more"
    ]


def parts_in(sheet: Sheet, column: str | None) -> np.ndarray:
    """Of each row the part that it belongs to."""
    if column is None:
        return np.full(len(sheet), "train")
    return parts_named(sheet.column(column), column, sheet.where)
