"""Raw samples as the student sees them, after a training as in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deepteach.data.dataset import Data
from deepteach.data.ranges import Range, refuse_two_ranges
from deepteach.data.scaling import normalised, whole
from deepteach.data.tables.frames import refuse_other_columns
from deepteach.data.validation import as_whole, features, refuse_non_finite, refuse_overflow
from deepteach.errors import DataError


@dataclass(frozen=True, eq=False)
class RawInputs:
    """From what a user holds to a tensor, as `from_arrays` does it.

    Args:
        mean: what is taken out of a sample.
        scale: by what it is divided then.
        keeps: whole numbers stay as they are.
        as_given: as in `from_arrays`.
        shape: of one sample.
        columns: of the data frame that the training samples were.
        pixels: the range of the numbers in images.
    """

    mean: Tensor
    scale: Tensor
    keeps: bool
    as_given: bool
    shape: tuple[int, ...]
    columns: tuple[Any, ...] | None = None
    pixels: Range | None = None

    @classmethod
    def of(cls, data: Data, *, as_given: bool) -> RawInputs:
        """Those of a problem."""
        keeps = not data.x_valid.is_floating_point()
        pixels = None
        if data.is_image and not keeps:
            raw = data.x_valid * data.scale + data.mean
            pixels = Range.of(raw.numpy().round(3))  # scaled and back, bytes are nearly whole
        return cls(data.mean, data.scale, keeps, as_given, data.input_shape, data.columns, pixels)

    def __call__(self, x: Any) -> Tensor:
        """Raises DataError: samples of another shape, other columns, not finite or too large."""
        own = None if self.columns is None else list(self.columns)
        refuse_other_columns(own, "x_train", x, "x")
        found = features(as_whole(x) if self.keeps else x, "x", as_given=self.as_given)
        if found.shape[1:] != self.shape:
            raise DataError(
                f"samples of x have shape {found.shape[1:]}, those of x_train {self.shape}: "
                "expected the same"
            )
        refuse_non_finite(found, "x")
        if self.pixels is not None:
            refuse_two_ranges({"x": Range.of(found), "x_train": self.pixels})
        if self.keeps:
            return whole(found)
        made = normalised(found, self.mean.numpy(), self.scale.numpy())
        refuse_overflow(made, found, "x")
        return made
