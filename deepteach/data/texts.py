"""Many short texts in one piece of memory: paths, and the cells of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np

_AT_ONCE = 1024


class Texts(Sequence[str]):
    """`(n,)` texts, which take their bytes and 8 more each; a list of them takes ten times that.

    Args:
        data: all texts in UTF-8, one behind the other. What a file system has in a name that is
            no UTF-8 is kept as Python does it (PEP 383).
        ends: `(n,)` where each ends.
    """

    def __init__(self, data: bytes, ends: np.ndarray) -> None:
        self._data, self._ends = data, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """These texts."""
        made = TextsMaker()
        made.extend(texts)
        return made.done()

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int, /) -> str: ...
    @overload
    def __getitem__(self, place: slice, /) -> Texts: ...
    def __getitem__(self, place: int | slice, /) -> str | Texts:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        return self._between(range(len(self))[place])

    def __iter__(self) -> Iterator[str]:
        start = 0
        for first in range(0, len(self), _AT_ONCE):
            ends = self._ends[first : first + _AT_ONCE].tolist()
            raw = self._data[start : ends[-1]]
            plain, begin = raw.decode("ascii") if raw.isascii() else None, 0
            for end in ends:
                stop = end - start
                yield _decoded(raw[begin:stop]) if plain is None else plain[begin:stop]
                begin = stop
            start = ends[-1]

    def hold(self, part: str) -> bool:
        """Whether a sign, or several, is anywhere in them."""
        return part.encode() in self._data

    def take(self, places: np.ndarray) -> Texts:
        """Those at `(m,)` places."""
        return Texts.of(self._between(place) for place in places)

    def _between(self, place: int) -> str:
        start = 0 if place == 0 else int(self._ends[place - 1])
        return _decoded(self._data[start : int(self._ends[place])])


@dataclass(frozen=True)
class Files(Sequence[Path]):
    """Files by their names, which are relative to a folder where they are not absolute."""

    names: Texts
    folder: Path = Path()

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int, /) -> Path: ...
    @overload
    def __getitem__(self, place: slice, /) -> Files: ...
    def __getitem__(self, place: int | slice, /) -> Path | Files:
        found = self.names[place]
        return self.folder / found if isinstance(found, str) else Files(found, self.folder)

    def take(self, places: np.ndarray) -> Files:
        """Those at `(m,)` places."""
        return Files(self.names.take(places), self.folder)


class TextsMaker:
    """Texts as they come."""

    def __init__(self) -> None:
        self._data, self._ends, self._count = bytearray(), [np.empty(0, np.int64)], 0

    def __len__(self) -> int:
        return self._count

    def extend(self, texts: Iterable[str]) -> None:
        """Some more texts, of which never all are held at once."""
        rest = iter(texts)
        while some := list(islice(rest, _AT_ONCE)):
            parts = [text.encode("utf-8", "surrogateescape") for text in some]
            ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
            self._ends.append(ends + len(self._data))
            self._data += b"".join(parts)
            self._count += len(parts)

    def done(self) -> Texts:
        """All of them."""
        return Texts(bytes(self._data), np.concatenate(self._ends))


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
