"""Whether the parts of a data set have their pixels in the same range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepteach.data.lazy import LazyRows
from deepteach.errors import DataError

_WHITE = 10.0
"""A greatest number of a pixel from which on 1 is not white."""


def refuse_two_ranges(xs: Mapping[str, Any]) -> None:
    """Raises DataError where one part has pixels of 0..1 and another of 0..255, or the like.

    Bytes are pixels, and so are floats in samples of three axes. All parts are scaled by the
    moments of the training samples, so that the other part would be nearly constant.
    """
    greatest = {name: _greatest(x) for name, x in xs.items() if _has_pixels(x)}
    large = next((k for k, (_, top) in greatest.items() if top > _WHITE), None)
    small = next((k for k, (sure, top) in greatest.items() if sure and 0 < top <= 1), None)
    if large is None or small is None:
        return
    byte = any(_kind(xs[name]) == np.uint8 for name in (large, small))
    images = len(xs[large].shape) == len(xs[small].shape) == 4
    if (byte or images) and _kind(xs[small]).kind == "f":
        raise DataError(
            f"{small} has pixels of 0..1 ({_kind(xs[small])}), and {large} of 0.."
            f"{greatest[large][1]:.4g} ({_kind(xs[large])}): give both in one range"
        )


def _kind(x: Any) -> np.dtype[Any]:
    return x.raw_dtype if isinstance(x, LazyRows) else x.dtype


def _has_pixels(x: Any) -> bool:
    if _kind(x) == np.uint8:
        return True
    if _kind(x).kind not in "iuf":
        return False
    return isinstance(x, LazyRows) or bool(x.min() >= 0)


def _greatest(x: Any) -> tuple[bool, float]:
    """Whether it is sure, and the greatest number; of what is not in memory one that it exceeds."""
    if isinstance(x, LazyRows):
        return False, float(np.max(x.moments.mean))
    return True, float(x.max())
