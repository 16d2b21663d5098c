"""Read folders of image files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deepteach.data.dataset import Read
from deepteach.data.splits import PARTS
from deepteach.errors import ConfigError, DataError

_SUFFIXES = (".png", ".jpg", ".jpeg")


def folder(path: Path) -> Read:
    """PATH/train/CLASS/*.png (or jpg), likewise valid and test; or PATH/CLASS/* alone.

    Classes are numbered in sorted order. Grey if all images are, else colour. All images
    take the size of the first. Needs Pillow (ConfigError); raises DataError.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError(
            "folder: needs Pillow to read images: pip install 'deepteach[images]'"
        ) from error
    if not path.is_dir():
        raise DataError(f"{path} is not a folder: expected {path}/train/CLASS/IMAGE.png")
    roots = {part: path / part for part in PARTS if (path / part).is_dir()}
    if not roots:
        roots = {"train": path}
    elif "train" not in roots:
        raise DataError(f"{path} has {', '.join(roots)} but no train: expected {path}/train")
    names = sorted({d.name for root in roots.values() for d in _folders(root)})
    if not names:
        raise DataError(f"{path} has no class folders: expected {path}/train/CLASS/IMAGE.png")
    files = {
        part: [(f, names.index(d.name)) for d in _folders(root) for f in _images(d)]
        for part, root in roots.items()
    }
    for part, found in files.items():
        if not found:
            raise DataError(f"{roots[part]} holds no {', '.join(_SUFFIXES)} image")
    modes, sizes = set(), []
    for file in (f for found in files.values() for f, _ in found):
        try:
            with Image.open(file) as image:
                modes.add(image.mode)
                sizes.append(image.size)
        except Exception as error:  # a damaged file raises nearly anything in Pillow
            raise DataError(f"{file} cannot be read as an image: {error}") from error
    mode = "L" if modes <= {"1", "L"} else "RGB"
    size, notes = sizes[0], []
    notes.append("classes: " + ", ".join(f"{n} = {i}" for i, n in enumerate(names[:10])))
    if odd := sum(s != size for s in sizes):
        notes.append(f"{odd} of {len(sizes)} images were resized to {size[0]}x{size[1]}")
    arrays: dict[str, Any] = {"classes": len(names)}
    for part, found in files.items():
        pixels = np.empty((len(found), size[1], size[0], len(mode)), np.uint8)
        for row, (file, _) in zip(pixels, found, strict=True):
            try:
                with Image.open(file) as image:
                    image = image.convert(mode)
                    if image.size != size:
                        image = image.resize(size, Image.Resampling.BILINEAR)
                    row[:] = np.asarray(image).reshape(row.shape)
            except Exception as error:
                raise DataError(f"{file} cannot be read as an image: {error}") from error
        arrays[f"x_{part}"] = pixels
        arrays[f"y_{part}"] = np.array([label for _, label in found])
    return arrays, notes


def _folders(root: Path) -> list[Path]:
    return sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))


def _images(root: Path) -> list[Path]:
    return sorted(f for f in root.iterdir() if f.suffix.lower() in _SUFFIXES)
