"""Images of Pillow that come as they are, in a list or out of a Dataset; it is not imported."""

from __future__ import annotations

import sys
from typing import Any

GREY_MODES = ("1", "L", "LA", "La")
_PACKED = ("P", "PA", "LA", "La", "RGBa", "CMYK")
"""Modes whose numbers are no grey, no colours and no transparency beside three colours."""


def is_picture(value: Any) -> bool:
    """Whether it is an image of Pillow."""
    library = sys.modules.get("PIL.Image")
    return library is not None and isinstance(value, library.Image)


def picture_layout(image: Any, size: int | None = None) -> Any:
    """The `Layout` of images as this one is, of `size` pixels a side if it is given."""
    from deepteach.data.images.pixels import Layout  # needs Pillow, which has made the image

    side = image.size if size is None else (size, size)
    return Layout(side, image.mode in GREY_MODES, deep=False, bits=8)


def unpacked(image: Any) -> Any:
    """The image, or its grey or colours `(h, w)` or `(h, w, 3)` as those of a file are read."""
    if image.mode not in _PACKED:
        return image
    layout = picture_layout(image)
    found = layout.pixels(image)[0]
    return found[:, :, 0] if layout.grey else found
