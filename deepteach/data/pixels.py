"""Read image files of any mode into one array. Importing this needs Pillow.

Symbols: n images, c channels (1 or 3), h height, w width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from deepteach.errors import DataError

_GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # more than 8 bits, one channel
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_ROTATIONS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class _Header:
    """What is known of an image before it is decoded."""

    mode: str
    size: tuple[int, int]  # (w, h), as it is to be looked at
    turned: bool  # by its EXIF mark
    alpha: bool
    cut: bool  # 16 bits a channel of colour, of which Pillow gives the 8 high ones


def read_pixels(files: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
    """Pixels and what to tell of them.

    Bytes (n, h, w, c), channels last; or, where grey images have more than 8 bits, floats
    0..255 as (n, c, h, w), each image divided by the greatest number of its depth, so that
    nothing is clipped. Rotation marks are obeyed, transparent pixels laid over white, and
    other sizes than the first resampled.

    Raises:
        DataError: a file is no image, or damaged.
    """
    headers = [_header(file) for file in files]
    grey = all(header.mode in _GREY for header in headers)
    deep = [i for i, header in enumerate(headers) if header.mode in _DEEP]
    (width, height), channels = headers[0].size, 1 if grey else 3
    pixels = np.empty((len(files), height, width, channels), np.float32 if deep else np.uint8)
    top = max((_greatest(files[i]) for i in deep), default=0.0)
    bits = next((b for b in (8, 10, 12, 14, 16) if top < 2**b), 32)
    scale = 255 / (2**bits - 1)
    seen_through = 0
    for row, file, header in zip(pixels, files, headers, strict=True):
        try:
            with Image.open(file) as image:
                upright = ImageOps.exif_transpose(image)
                if header.mode in _DEEP:
                    numbers = np.asarray(upright, np.float32) * scale
                    plain = Image.fromarray(numbers)
                else:
                    plain, through = _flat(upright, header.alpha)
                    plain = plain.convert("L" if grey else "RGB")
                    seen_through += through
                if plain.size != (width, height):
                    plain = plain.resize((width, height), Image.Resampling.BILINEAR)
                found = np.asarray(plain)
                row[:] = found if found.ndim == 3 else found[:, :, None]
        except Exception as error:  # a damaged file raises nearly anything in Pillow
            raise _unreadable(file, error) from error
    if deep:
        pixels = np.moveaxis(pixels, 3, 1)  # floats are taken as they are
    return pixels, _notes(headers, (width, height), len(deep), bits, seen_through)


def _notes(
    headers: list[_Header], size: tuple[int, int], deep: int, bits: int, seen_through: int
) -> list[str]:
    count, notes = len(headers), []
    if odd := sum(header.size != size for header in headers):
        notes.append(f"{odd} of {count} images were resized to {size[0]}x{size[1]}")
    if deep:
        notes.append(f"{deep} of {count} images have {bits} bits a pixel: scaled to 0..255")
    if cut := sum(header.cut for header in headers):
        notes.append(f"{cut} of {count} images have 16 bits a channel: the 8 high bits are read")
    if turned := sum(header.turned for header in headers):
        notes.append(f"{turned} of {count} images were turned upright by their EXIF mark")
    if seen_through:
        notes.append(f"{seen_through} of {count} images are transparent: laid over white")
    if cmyk := sum(header.mode == "CMYK" for header in headers):
        notes.append(f"{cmyk} of {count} images were converted from CMYK")
    return notes


def _header(file: Path) -> _Header:
    try:
        with Image.open(file) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            width, height = image.size
            size = (height, width) if orientation in _ROTATIONS else (width, height)
            alpha = image.mode in _ALPHA or "transparency" in image.info
            turned = orientation in range(2, 9)
            mode = image.mode
            return _Header(mode, size, turned, alpha, image.format == "PNG" and _is_cut(file, mode))
    except Exception as error:
        raise _unreadable(file, error) from error


def _is_cut(file: Path, mode: str) -> bool:
    """Whether a PNG has 16 bits a channel (byte 24 of the file) that Pillow gives as 8."""
    with open(file, "rb") as raw:
        return raw.read(25)[24:] == b"\x10" and mode not in _DEEP


def _greatest(file: Path) -> float:
    """The greatest number in an image of one deep channel."""
    try:
        with Image.open(file) as image:
            numbers = np.asarray(image, np.float64)
    except Exception as error:
        raise _unreadable(file, error) from error
    if numbers.min() < 0 or not np.isfinite(numbers).all():
        raise DataError(f"{file} holds {numbers.min()}: expected pixels of 0 or more")
    return float(numbers.max())


def _flat(image: Image.Image, alpha: bool) -> tuple[Image.Image, bool]:
    """Without transparency, and whether there was any: white shows through."""
    if not alpha:
        return image, False
    layered = image.convert("RGBA")
    if np.asarray(layered)[:, :, 3].min() == 255:
        return layered.convert("RGB"), False
    white = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(white, layered).convert("RGB"), True


def _unreadable(file: Path, error: Exception) -> DataError:
    text = " ".join(str(error).split())
    return DataError(f"{file} cannot be read as an image: {text}")
