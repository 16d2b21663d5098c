"""What teachers have in common that read features side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import cast

from torch import Tensor, nn

from deepteach.core.feature import Feature
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError


class Reading(AbstractTeacher):
    """A teacher of features: what they remember and what they are fitted on reaches each of them.

    Args:
        features: what it reads of a sample, side by side.

    Raises:
        ConfigError: no features, something that is not a `Feature`, or one without a width.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        super().__init__()
        listed = isinstance(features, Iterable) and not isinstance(features, nn.Module)
        features = list(features) if listed else []
        if not features or not all(isinstance(item, Feature) for item in features):
            raise ConfigError(
                f"{type(self).__name__} takes a list of dt.Feature objects, as [dt.Loss()]"
            )
        for item in features:
            width = getattr(item, "width", None)
            if not isinstance(width, Integral) or isinstance(width, bool) or width < 1:
                raise ConfigError(
                    f"{type(item).__name__}.width is the number of its columns, a whole number of "
                    f"at least 1, got {width!r}: set it in the class or in __init__"
                )
        self.features = nn.ModuleList(features)

    def fit(self, trusted: Snapshot) -> None:
        for feature in self._each_feature():
            feature.fit(trusted)

    def observe(self, snapshot: Snapshot) -> None:
        for feature in self._each_feature():
            feature.observe(snapshot)

    @property
    def observes(self) -> bool:
        return any(feature.observes for feature in self._each_feature())

    @property
    def reads_trusted(self) -> bool:
        features = list(self._each_feature())
        fitted = any(type(feature).fit is not Feature.fit for feature in features)
        return fitted or any(feature.reads_trusted for feature in features)

    def _read(self, feature: Feature, snapshot: Snapshot) -> Tensor:
        """`(batch, width)` what a feature says. Raises ConfigError: it said something else."""
        found, samples = feature(snapshot), len(snapshot.losses)
        if isinstance(found, Tensor) and found.shape == (samples, feature.width):
            return found
        came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        column = isinstance(found, Tensor) and found.shape == (samples,) and feature.width == 1
        remedy = "end it with .unsqueeze(1)" if column else "return that, or set its width to fit"
        raise ConfigError(
            f"{type(feature).__name__} must return (batch, width), here "
            f"{(samples, feature.width)}, got {came}: {remedy}"
        )

    def _each_feature(self) -> list[Feature]:
        return cast(list[Feature], list(self.features))  # as they were when it was made
