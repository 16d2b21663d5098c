"""A list of image files with their labels: images are read when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepteach.data.lazy import LazyRows
from deepteach.data.source import Asked, Read
from deepteach.data.tables.sheets import (
    Sheet,
    by_part,
    groups_in,
    labels_in,
    parts_in,
    read_sheet,
    special_columns,
)
from deepteach.data.texts import Files, Texts
from deepteach.errors import ConfigError, DataError
from deepteach.names import hint


@dataclass(frozen=True)
class _Lines:
    """Says on which line of a file an image is named."""

    path: Path
    lines: np.ndarray

    def __call__(self, place: int) -> str:
        return f"{self.path} line {self.lines[place]}: "


def manifest(path: Path, asked: Asked) -> Read:
    """A csv with the columns `path` and `label`, the paths relative to its folder.

    Optional columns: `split` (train, valid, test), `label_clean`, and `group`, or what is asked
    for in its place. Samples are numbered as the rows of the file, the first 0. All images take
    the size of the first, or the one asked for.

    Raises:
        ConfigError: Pillow is missing.
        DataError: the file or an image cannot be read, with the line.
    """
    try:
        import PIL.Image  # noqa: F401 - the next line needs it

        from deepteach.data.images.pixels import ImageFiles, Layout
    except ImportError as error:
        raise ConfigError(
            "manifest: needs Pillow to read images: pip install 'deepteach[images]'"
        ) from error
    sheet, notes = read_sheet(path)
    own = ("path",) if asked.group else ("path", "group")
    special = special_columns(path, sheet.header, asked.group, own)
    for key in ("path", "label"):
        if key not in special:
            known = hint(key, sheet.header)
            raise DataError(f"{path} has no column '{key}': expected path and label{known}")
    if rest := [c for c in sheet.header if c not in special.values()]:
        notes.append(f"columns that are not used: {', '.join(rest[:5])}")
    labels, told = labels_in(sheet, special)
    notes.extend(told)
    groups = groups_in(sheet, special.get("group"))
    parts, lines = parts_in(sheet, special.get("split")), sheet.lines
    names = _names(sheet, special["path"])
    del sheet  # the other cells are not needed while the images are read
    files = Files(names, path.parent)
    layout, told = Layout.of(files, asked.image_size, _Lines(path, lines))
    notes.extend(told)

    def inputs(part: str, rows: np.ndarray) -> LazyRows:
        images = ImageFiles(files.take(rows), layout, _Lines(path, lines[rows]))
        return LazyRows.of(images, f"x_{part}", asked.reading, draws=False)

    arrays = by_part(path, parts, inputs, labels, groups)
    arrays["paths_train"] = names.take(arrays["rows_train"])
    return arrays, notes


def _names(sheet: Sheet, column: str) -> Texts:
    names = sheet.column(column)
    if "" in names:
        line = sheet.lines[names.index("")]
        raise DataError(f"{sheet.path} line {line}: the path is empty: name an image, or remove it")
    return names
