"""How a csv file is written: its encoding, its separator, what stands before its header."""

from __future__ import annotations

import csv
import io
import itertools
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deepteach.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)
_PACKED = {
    b"PK\x03\x04": "a workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "a workbook",
    b"\x1f\x8b": "a gzip archive",
    b"PAR1": "a parquet file",
}
_PACKED_REMEDY = "save it as csv, unpack it, or name it as what it is (parquet:PATH)"
_SAYS = re.compile(r'"?sep=([^"\r\n])"?[,;\t|]*', re.IGNORECASE)
_MOST_LINES = 1000
"""Of a header, whose quoted cells may hold line breaks."""
_LINES_SEEN = 100
"""Below a header that several signs part."""
_LONGEST = 2**31 - 1
"""Characters of a cell; no platform takes a larger limit."""


class _CellsOfAnyLength:
    """While it is entered, by any thread, a cell may be longer than 131,072 characters.

    That limit is one for the whole process, and others may rely on it: the last to leave puts back
    what there was.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = csv.field_size_limit(_LONGEST)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                csv.field_size_limit(self._before)


cells_of_any_length = _CellsOfAnyLength()
"""To be entered where rows are read, and not by whatever hands them on: that may never end."""


@dataclass(frozen=True)
class Dialect:
    """How one file is written.

    Args:
        encoding: by its byte order mark; UTF-8 without one.
        separator: between cells.
        first: the line before the header that names the separator, as Excel reads it; "" else.
        newline: at the end of lines.
    """

    encoding: str
    separator: str
    first: str
    newline: str

    @classmethod
    def of(cls, path: Path) -> Dialect:
        """That of a file.

        Raises:
            DataError: it is UTF-16 without a mark, or may be parted by several signs.
            OSError, UnicodeDecodeError: it cannot be read.
        """
        encoding = _encoding(path)
        with open(path, newline="", encoding=encoding) as file:
            line = file.readline()
            newline = "\r\n" if line.endswith("\r\n") else "\n"
            said = _SAYS.fullmatch(line.strip("\r\n"))
            if said is not None:
                return cls(encoding, said[1], line, newline)
            return cls(encoding, _separator(_record(line, file), file, path), "", newline)

    @property
    def called(self) -> str:
        """What the separator is called."""
        return SEPARATORS.get(self.separator, repr(self.separator))

    def open(self, path: Path) -> IO[str]:
        """The file, from its header on."""
        file = open(path, newline="", encoding=self.encoding)  # noqa: SIM115 - handed on
        if self.first:
            file.readline()
        return file

    def rows(self, file: IO[str], *, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
        """The rows that hold something, and the line of the file that each ends on.

        Raises:
            csv.Error: a quoted cell that does not end.
        """
        reader = csv.reader(file, delimiter=self.separator, strict=strict)
        before = bool(self.first)
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num + before, row

    def written(self, rows: Iterator[list[str]]) -> bytes:
        """Rows, the header first, as a file like this one."""
        text = io.StringIO()
        text.write(self.first)
        csv.writer(text, delimiter=self.separator, lineterminator=self.newline).writerows(rows)
        return text.getvalue().encode(self.encoding)


def _encoding(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(64)
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    for mark, called in _PACKED.items():
        if start.startswith(mark):
            raise DataError(f"{path} is {called}, and no csv file: {_PACKED_REMEDY}")
    if b"\x00" in start:
        raise DataError(
            f"{path} cannot be read as csv (it holds zero bytes, as UTF-16 does): save it as UTF-8"
        )
    return "utf-8"


def _record(line: str, file: IO[str]) -> str:
    """A line, and those after it in which a quoted cell goes on."""
    for _ in range(_MOST_LINES):
        if line.count('"') % 2 == 0:
            break
        more = file.readline()
        if not more:
            break
        line += more
    return line


def _separator(header: str, file: IO[str], path: Path) -> str:
    """The sign that parts the header, and the lines below it into as many cells.

    Names of columns may hold commas, as in `Height, m;Weight, kg`, and so may numbers. Where
    several signs do as well, the one of most cells it is; quoted cells hold none.
    """
    cells = {sign: len(next(_parted(header, sign), [])) for sign in SEPARATORS}
    likely = [sign for sign in SEPARATORS if cells[sign] > 1]
    if len(likely) < 2:
        return likely[0] if likely else ","
    below = "".join(itertools.islice(file, _LINES_SEEN))
    ranks = {}
    for sign in likely:
        rows = [row for row in _parted(below, sign) if row]
        ranks[sign] = (sum(len(row) == cells[sign] for row in rows), cells[sign])
    best = [sign for sign in likely if ranks[sign] == max(ranks.values())]
    if len(best) > 1:
        first, second = (SEPARATORS[sign] for sign in best[:2])
        raise DataError(
            f"{path} may be parted by {first} or by {second}, which make as many cells of its "
            f"lines: write sep={best[-1]} (or the other one) on a line above the header, or "
            "quote the names of columns that hold one"
        )
    return best[0]


def _parted(text: str, sign: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), delimiter=sign)
