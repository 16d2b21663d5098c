"""Columns of text in a table: 0 and 1 for each category that the training rows have.

Symbols: n rows, k categories.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deepteach.data.validation import in_message
from deepteach.errors import DataError
from deepteach.names import first_few

MOST = 100
"""Categories of a column; a name, a date or a number of a customer has more."""

MISSING = ("", "na", "n/a", "<na>", "nan", "null", "none", "?", "-")
"""What stands for no value, in small letters."""

_NEARLY = re.compile(
    r"\(?[+\-\u2212]?\s*[$€£]?\s*[+\-\u2212]?[\d.,\s'\u2019]*\d[\d.,\s'\u2019]*([eE][+-]?\d+)?\s*[%$€£]?\)?"
)
_TRUTH = ("true", "false")


@dataclass(frozen=True)
class Categories:
    """A column of text by the categories of the training rows."""

    name: str
    names: tuple[str, ...]  # (k,), sorted
    columns: np.ndarray  # (n, k), all 0 where a row has none of them
    told: tuple[str, ...]  # what is odd about it
    unseen: str | None  # and what must be warned of


def is_text(cells: Sequence[str]) -> bool:
    """Whether none of the cells could be meant as a number, and some have a value.

    1,200 or 12 % or (5) are badly written numbers, which no category may be made of; 25-34 is none.
    """
    some = False
    for cell in cells:
        if cell.lower() in _TRUTH or _NEARLY.fullmatch(cell):
            return False
        some = some or cell.lower() not in MISSING
    return some


def categories_of(
    name: str, cells: Sequence[str], parts: np.ndarray, where: Callable[[int], str]
) -> Categories:
    """The column as 0 and 1.

    Args:
        name: of the column.
        cells: `(n,)` its text.
        parts: `(n,)` the part that each row belongs to.
        where: of a row, what goes before a message.

    Raises:
        DataError: an empty cell, or more than `MOST` categories.
    """
    if "" in cells:
        count = cells.count("")
        raise DataError(
            f"{where(cells.index(''))}: column '{name}' is '', a missing value ({count} of "
            f"{len(cells)} rows have none there): fill such cells or remove the rows"
        )
    names = sorted({cell for cell, part in zip(cells, parts, strict=True) if part == "train"})
    if len(names) > MOST:
        raise DataError(
            f"{where(0)}: column '{name}' is text with {len(names)} different values, and no "
            f"more than {MOST} are taken as categories: remove it, or encode it as numbers"
        )
    place = {category: i for i, category in enumerate(names)}
    codes = np.fromiter((place.get(cell, -1) for cell in cells), np.int64, len(cells))
    told = [
        f"column '{name}': '{names[i]}' is a category of its own, in {(codes == i).sum()} rows"
        for i, category in enumerate(names)
        if category.lower() in MISSING
    ]
    unseen, other = None, np.flatnonzero(codes < 0)
    if len(other):
        unseen = (
            f"column '{name}': {len(other)} rows beside the training rows hold a category that "
            f"those do not have, e.g. '{in_message(cells[int(other[0])])}': 0 in all its columns"
        )
    columns = codes[:, None] == np.arange(len(names))
    return Categories(name, tuple(names), columns, tuple(told), unseen)


def notes_of(found: Sequence[Categories]) -> list[str]:
    """What to tell of the columns of text of a table; of unseen categories it warns, too."""
    if not found:
        return []
    shown = "; ".join(
        f"{one.name} ({first_few([*map(in_message, one.names)])})" for one in found[:5]
    )
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    notes = [
        f"columns of text become 0 and 1 for each category of the training rows: {shown}{more}"
    ]
    for one in found:
        notes.extend(one.told)
        if one.unseen is not None:
            notes.append(one.unseen)
            warnings.warn(one.unseen, UserWarning, stacklevel=2)
    return notes
