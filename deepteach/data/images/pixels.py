"""Read image files of any mode, all of one shape: at once, or each when it is needed.

Importing this needs Pillow. Symbols: n images, c channels (1 or 3), h height, w width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from deepteach.data.images.pictures import GREY_MODES
from deepteach.data.texts import Files, Texts
from deepteach.errors import DataError

_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # more than 8 bits, one channel
_GREY = (*GREY_MODES, *_DEEP)
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_ROTATIONS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112


def nowhere(place: int) -> str:
    """Nothing to say before the name of a file."""
    return ""


@dataclass(frozen=True)
class _Header:
    """What is known of an image before it is decoded."""

    mode: str
    size: tuple[int, int]  # (w, h), as it is to be looked at
    turned: bool  # by its EXIF mark
    several: bool  # in one file
    cut: bool  # 16 bits a channel of colour, of which Pillow gives the 8 high ones


@dataclass(frozen=True)
class Layout:
    """What all images of a set become, found in their headers.

    Bytes `(h, w, c)`; or, where grey images have more than 8 bits, floats 0..255 `(c, h, w)`,
    each image divided by the greatest number of its depth, so that nothing is clipped. Images of
    floats none of which is above 1 have a range of their own, in which 1 is white.
    """

    size: tuple[int, int]  # (w, h)
    grey: bool
    deep: bool  # whether any has more than 8 bits
    bits: int  # of the deepest
    unit: bool = False  # whether floats are of 0..1

    @property
    def sample_bytes(self) -> int:
        """Of one image as the float32 that a student sees."""
        return 4 * self.size[0] * self.size[1] * (1 if self.grey else 3)

    @classmethod
    def of(
        cls,
        files: Sequence[Path],
        size: int | None = None,
        where: Callable[[int], str] = nowhere,
    ) -> tuple[Layout, list[str]]:
        """That of `files`, and what to tell of them.

        Args:
            files: the images.
            size: pixels of a side (default: width and height of the first image).
            where: what goes before the name of a bad file, by its place.

        Raises:
            DataError: a file is no image, or damaged as far as its header tells.
        """
        headers: Counter[_Header] = Counter()
        whole, floats = 0.0, 0.0  # the greatest numbers
        odd: tuple[str, float] | None = None  # the first image of floats beyond 0..1
        for place, file in enumerate(files):
            header = _named(_header, file, where(place))
            headers[header] += 1
            if header.mode not in _DEEP:
                continue
            top, fractions = _named(_greatest, file, where(place))
            if header.mode == "F":
                floats = max(floats, top)
                if fractions and top > 1 and odd is None:
                    odd = f"{where(place)}{file}", top
            else:
                whole = max(whole, top)
        unit = 0 < floats <= 1
        if odd is not None and any(header.mode != "F" for header in headers):
            raise DataError(
                f"{odd[0]} holds fractions up to {odd[1]:.6g}, beside images of whole numbers: "
                "which of its numbers is white cannot be known; save all images in one format"
            )
        top = whole if unit else max(whole, floats)
        bits = next((b for b in (8, 10, 12, 14, 16) if top < 2**b), 32)
        grey = all(header.mode in _GREY for header in headers)
        deep = sum(count for header, count in headers.items() if header.mode in _DEEP)
        first = next(iter(headers))  # they are in the order of their first image
        side = first.size if size is None else (size, size)
        layout = cls(side, grey, deep > 0, bits, unit)
        return layout, _notes(headers, layout)

    def read(self, file: Path) -> tuple[np.ndarray, bool]:
        """Pixels of one image, and whether white was laid under it.

        Rotation marks are obeyed and other sizes resampled.

        Raises:
            DataError: it is damaged.
        """
        try:
            with Image.open(file) as image:
                alpha = image.mode in _ALPHA or "transparency" in image.info
                ImageOps.exif_transpose(image, in_place=True)
                return self.pixels(image, alpha)
        except Exception as error:  # a damaged file raises nearly anything in Pillow
            raise _unreadable(file, error) from error

    def pixels(self, image: Image.Image, alpha: bool | None = None) -> tuple[np.ndarray, bool]:
        """The same of an image that stands upright; `alpha` tells whether it may be transparent."""
        if alpha is None:
            alpha = image.mode in _ALPHA or "transparency" in image.info
        through = False
        if image.mode in _DEEP:
            own = self.unit and image.mode == "F"
            numbers = np.asarray(image, np.float32) * (255 / (1 if own else 2**self.bits - 1))
            plain = Image.fromarray(numbers)
        else:
            plain, through = _flat(image, alpha)
            mode = "L" if self.grey else "RGB"
            plain = plain if plain.mode == mode else plain.convert(mode)
        if plain.size != self.size:
            plain = plain.resize(self.size, Image.Resampling.BILINEAR)
        found = np.asarray(plain)
        found = found if found.ndim == 3 else found[:, :, None]
        if not self.grey:
            found = np.broadcast_to(found, (*found.shape[:2], 3))  # a deep one among others
        if self.deep:  # floats are taken as they are
            return np.moveaxis(found, 2, 0).astype(np.float32), through
        return found, through


def read_pixels(files: Sequence[Path], layout: Layout) -> tuple[np.ndarray, list[str]]:
    """All images as one array, `(n, h, w, c)` or `(n, c, h, w)`; what to tell of them."""
    first, seen_through = layout.read(files[0])
    pixels = np.empty((len(files), *first.shape), first.dtype)
    count = 0
    for row, file in zip(pixels, files, strict=True):
        row[:], seen_through = layout.read(file)
        count += seen_through
    told = f"{count} of {len(files)} images are transparent: laid over white"
    return pixels, [told] if count else []


class ImageFiles:
    """A map-style dataset of images that are decoded on access, and nothing else.

    Args:
        files: the images.
        layout: what they become.
        where: what goes before the name of a bad file, by its place.
    """

    def __init__(
        self,
        files: Sequence[Path],
        layout: Layout,
        where: Callable[[int], str] = nowhere,
    ) -> None:
        # No list, of which workers that share memory make copies as they count references.
        self._files = files if isinstance(files, Files) else Files(Texts.of(map(str, files)))
        self.layout, self.where = layout, where

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, place: int) -> tuple[np.ndarray]:
        try:
            return (self.layout.read(self._files[place])[0],)
        except DataError as error:
            raise DataError(f"{self.where(place)}{error}") from error


def _named(read: Callable[[Path], Any], file: Path, before: str) -> Any:
    try:
        return read(file)
    except DataError as error:
        raise DataError(f"{before}{error}") from error


def _notes(headers: Counter[_Header], layout: Layout) -> list[str]:
    size, bits = layout.size, layout.bits

    def those(are: Callable[[_Header], bool]) -> int:
        return sum(number for header, number in headers.items() if are(header))

    count, notes = headers.total(), []
    if odd := those(lambda header: header.size != size):
        notes.append(f"{odd} of {count} images were resized to {size[0]}x{size[1]}")
    floats = those(lambda header: header.mode == "F") if layout.unit else 0
    if floats:
        notes.append(f"{floats} of {count} images are floats of 0..1: scaled to 0..255")
    if deep := those(lambda header: header.mode in _DEEP) - floats:
        notes.append(f"{deep} of {count} images have {bits} bits a pixel: scaled to 0..255")
    if cut := those(lambda header: header.cut):
        notes.append(f"{cut} of {count} images have 16 bits a channel: the 8 high bits are read")
    if turned := those(lambda header: header.turned):
        notes.append(f"{turned} of {count} images were turned upright by their EXIF mark")
    if several := those(lambda header: header.several):
        notes.append(f"{several} of {count} files hold more than one image: the first is read")
    if cmyk := those(lambda header: header.mode == "CMYK"):
        notes.append(f"{cmyk} of {count} images were converted from CMYK")
    return notes


def _header(file: Path) -> _Header:
    try:
        with Image.open(file) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            width, height = image.size
            size = (height, width) if orientation in _ROTATIONS else (width, height)
            turned = orientation in range(2, 9)
            mode = image.mode
            several = bool(getattr(image, "is_animated", False))
            cut = image.format == "PNG" and _is_cut(file, mode)
            return _Header(mode, size, turned, several, cut)
    except Exception as error:
        raise _unreadable(file, error) from error


def _is_cut(file: Path, mode: str) -> bool:
    """Whether a PNG has 16 bits a channel (byte 24 of the file) that Pillow gives as 8."""
    with open(file, "rb") as raw:
        return raw.read(25)[24:] == b"\x10" and mode not in _DEEP


def _greatest(file: Path) -> tuple[float, bool]:
    """The greatest number in an image of one deep channel, and whether any is a fraction."""
    try:
        with Image.open(file) as image:
            numbers = np.asarray(image, np.float64)
    except Exception as error:
        raise _unreadable(file, error) from error
    if numbers.min() < 0 or not np.isfinite(numbers).all():
        raise DataError(f"{file} holds {numbers.min()}: expected pixels of 0 or more")
    return float(numbers.max()), bool((numbers != np.trunc(numbers)).any())


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
    if isinstance(error, FileNotFoundError):
        return DataError(f"{file} does not exist: correct its name, or remove it from the list")
    text = " ".join(str(error).split())
    return DataError(f"{file} cannot be read as an image ({text}): save it anew, or remove it")
