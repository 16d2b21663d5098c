"""Find the image files of a folder, by part and class. How one is read is in `pixels`."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deepteach.data.lazy import LazyRows
from deepteach.data.source import Asked, Read
from deepteach.data.splits import PARTS, part_named
from deepteach.data.texts import Files, TextsMaker
from deepteach.errors import ConfigError, DataError
from deepteach.names import first_few

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)
_SYSTEM = {"thumbs.db", "desktop.ini", "ehthumbs.db", "__macosx", "@eadir", "$recycle.bin"}
"""What systems leave in folders; besides it, hidden files (a first point) are passed over."""


HELD = 2**29
"""Bytes as float32 up to which the images of a folder are held in memory."""


def folder(path: Path, asked: Asked) -> Read:
    """PATH/train/CLASS/IMAGE, likewise valid and test in any usual spelling; or PATH/CLASS/IMAGE.

    Classes are numbered in sorted order; a folder without an image is none. Grey if all
    images are, else colour. All images take the size of the first, or the one asked for. Pixels
    are bytes, or floats 0..255 where an image has more than 8 bits a channel. Beyond `HELD` the
    images are read on access.

    Raises:
        ConfigError: Pillow is missing.
        DataError: there is nothing to read, or a file cannot be read.
    """
    try:
        import PIL.Image  # noqa: F401 - the next line needs it

        from deepteach.data.images.pixels import ImageFiles, Layout, read_pixels
    except ImportError as error:
        raise ConfigError(
            "folder: needs Pillow to read images: pip install 'deepteach[images]'"
        ) from error
    if not path.is_dir():
        raise DataError(f"{path} is not a folder: expected {path}/train/CLASS/IMAGE.png")
    roots, notes = _roots(path)
    names = sorted({d.name for root in roots.values() for d in _folders(root)})
    if not names:
        raise DataError(f"{path} has no class folders: expected {path}/train/CLASS/IMAGE.png")
    files, owners, bounds = _listed(roots, names)
    classes = [name for i, name in enumerate(names) if (owners == i).any()]
    if empty := [name for name in names if name not in classes]:
        notes.append(f"class folders without an image are not used: {first_few(empty, 3)}")
    notes.extend(_left_out(roots))
    trained = owners[slice(*bounds["train"])]
    if lacking := [name for name in classes if not (trained == names.index(name)).any()]:
        notes.append(f"no training image of {first_few(lacking, 3)}")
    shown = ", ".join(f"{n} = {i}" for i, n in enumerate(classes[:10]))
    notes.append(f"classes: {shown}" + (", ..." if len(classes) > 10 else ""))
    layout, told = Layout.of(files, asked.image_size)
    notes.extend(told)
    arrays: dict[str, Any] = {"classes": len(classes), "label_names": classes}
    lazy = len(files) * layout.sample_bytes > HELD
    if lazy:
        notes.append(_on_access(len(files), layout.sample_bytes))
        pixels = np.empty(0)
    else:
        pixels, told = read_pixels(files, layout)
        notes.extend(told)
    codes = np.array([classes.index(name) if name in classes else -1 for name in names])[owners]
    for part, (start, end) in bounds.items():
        own = files[start:end]
        arrays[f"y_{part}"] = codes[start:end]
        if part == "train":
            arrays["paths_train"] = own.names
        if lazy:
            images = ImageFiles(own, layout)
            arrays[f"x_{part}"] = LazyRows.of(images, f"x_{part}", asked.reading, draws=False)
        else:
            arrays[f"x_{part}"] = pixels[start:end]
    return arrays, notes


def image_files(path: Path) -> Iterator[tuple[str, str, Path]]:
    """The part, class and file of every image; those of a part in the order of their numbers."""
    roots, _ = _roots(path)
    names = sorted({d.name for root in roots.values() for d in _folders(root)})
    files, owners, bounds = _listed(roots, names)
    for part, (start, end) in bounds.items():
        for place in range(start, end):
            yield part, names[owners[place]], files[place]


def _listed(
    roots: dict[str, Path], names: list[str]
) -> tuple[Files, np.ndarray, dict[str, tuple[int, int]]]:
    """The images of all parts, the class folder of each as its place in `names`, where parts are.

    Raises:
        DataError: a part without an image.
    """
    made, owners, bounds = TextsMaker(), array("q"), {}
    for part, root in roots.items():
        start = len(owners)
        for place in _folders(root):
            before = len(made)
            made.extend(str(file) for file in _files(place) if _is_image(file))
            owners.extend([names.index(place.name)] * (len(made) - before))
        if len(owners) == start:
            raise DataError(f"{root} holds no {', '.join(SUFFIXES)} image")
        bounds[part] = start, len(owners)
    return Files(made.done()), np.array(owners), bounds


def _on_access(count: int, size: int) -> str:
    total = count * size / 2**30
    return f"{count} images would take {total:.1f} GiB in memory: each is read when it is needed"


def _roots(path: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of each part, and what to tell of folders beside them.

    A folder of images and no folders is a class, whatever its name (a train is one).

    Raises:
        DataError: two folders of one part, parts without train, or images beside no classes.
    """
    roots: dict[str, Path] = {}
    beside = []
    for place in _folders(path):
        part = part_named(place.name)
        flat = not _folders(place) and any(_is_image(f) for f in place.iterdir())
        if part is None or flat:
            beside.append(place.name)
        elif part in roots:
            raise DataError(
                f"{path} has {roots[part].name} and {place.name}, both of which mean {part}: "
                "keep one of them"
            )
        else:
            roots[part] = place
    if not roots:
        if len(beside) > 1 and all(part_named(name) for name in beside):
            raise DataError(
                f"{path} has {' and '.join(beside)}, which hold images and no class folders: "
                f"expected {path}/train/CLASS/IMAGE.png, or a manifest"
            )
        inside = [[d.name for d in _folders(path / name)] for name in beside]
        alike = len(inside) > 1 and len(inside[0]) > 1 and all(n == inside[0] for n in inside)
        note = (
            f"classes {first_few(beside, 3)} hold folders of the same names "
            f"({first_few(inside[0], 3)}): if they are parts, call them train, valid and test"
        ) if alike else None  # fmt: skip
        return {"train": path}, [] if note is None else [note]
    if "train" not in roots:
        named = ", ".join(place.name for place in roots.values())
        raise DataError(f"{path} has {named} but no train: expected {path}/train")
    parts = {part: roots[part] for part in PARTS if part in roots}
    unused = f"folders beside the parts are not used: {first_few(beside, 3)}"
    return parts, [unused] if beside else []


def _left_out(roots: dict[str, Path]) -> list[str]:
    """What to tell of files that are read by nobody: no images, or in no class folder."""
    inside = (f for root in roots.values() for d in _folders(root) for f in _files(d))
    others = [f.name for f in inside if not _is_image(f)]
    outside = [f.name for root in roots.values() for f in root.iterdir() if _is_image(f)]
    notes = []
    if others:
        notes.append(f"{len(others)} files that are no images are not used: {first_few(others, 3)}")
    if outside:
        notes.append(
            f"{len(outside)} images in no class folder are not used: {first_few(outside, 3)}"
        )
    return notes


def _folders(root: Path) -> list[Path]:
    return [d for d in _sorted(root) if d.is_dir() and not _passed_over(d)]


def _sorted(root: Path) -> Iterator[Path]:
    return (root / name for name in sorted(os.listdir(root)))


def _files(root: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files of a folder and of those in it, sorted by path; links that lead up are left."""
    above = (*above, os.path.realpath(root))
    for place in _sorted(root):
        if _passed_over(place) or (place.is_symlink() and os.path.realpath(place) in above):
            continue
        if place.is_dir():
            yield from _files(place, above)
        else:
            yield place


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not _passed_over(file) and file.is_file()


def _passed_over(place: Path) -> bool:
    return place.name.startswith(".") or place.name.lower() in _SYSTEM
