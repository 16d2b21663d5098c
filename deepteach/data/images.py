"""Read images from disk: folders of files, and CIFAR's published binary format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deepteach.errors import ConfigError, DataError

# The array arguments of `data.from_arrays`, and what the user must be told.
Read = tuple[dict[str, Any], list[str]]

_SUFFIXES = (".png", ".jpg", ".jpeg")
_PARTS = ("train", "valid", "test")


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
    roots = {part: path / part for part in _PARTS if (path / part).is_dir()}
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


def cifar(path: Path, classes: int) -> Read:
    """CIFAR-10 or CIFAR-100, binary version: label byte(s), then 3 x 32 x 32 pixels.

    A record of CIFAR-100 begins with a coarse label, which is skipped. Raises DataError.
    """
    inner = path / ("cifar-10-batches-bin" if classes == 10 else "cifar-100-binary")
    root = inner if inner.is_dir() else path
    train, test = [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"
    if classes == 100:
        train, test = ["train.bin"], "test.bin"
    parts = [_records(root / file, classes) for file in train]
    x_test, y_test = _records(root / test, classes)
    return {
        "x_train": np.concatenate([x for x, _ in parts]),
        "y_train": np.concatenate([y for _, y in parts]),
        "x_test": x_test,
        "y_test": y_test,
        "classes": classes,
    }, []


def _records(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) uint8 and fine labels (n,) of one binary file."""
    before = 1 if classes == 10 else 2
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        pickled = path.with_suffix("").exists()
        hint = "this is the pickled 'python version'; " if pickled else ""
        raise DataError(
            f"{path} cannot be read ({error.strerror}): {hint}expected the files of "
            "CIFAR's 'binary version'"
        ) from error
    if len(raw) == 0 or len(raw) % (before + 3072):
        raise DataError(
            f"{path} has {len(raw)} bytes, not a multiple of the {before + 3072} of a "
            "record: it is truncated or not CIFAR's binary version; fetch it again"
        )
    records = raw.reshape(-1, before + 3072)
    labels = records[:, before - 1].astype(np.int64)
    if (wrong := np.flatnonzero(labels >= classes)).size:
        raise DataError(
            f"{path} has label {labels[wrong[0]]} in record {wrong[0]}, outside "
            f"0..{classes - 1}: it is damaged or of another data set"
        )
    return records[:, before:].reshape(-1, 3, 32, 32), labels


def _folders(root: Path) -> list[Path]:
    return sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))


def _images(root: Path) -> list[Path]:
    return sorted(f for f in root.iterdir() if f.suffix.lower() in _SUFFIXES)
