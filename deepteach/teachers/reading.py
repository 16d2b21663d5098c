"""What teachers have in common that read features side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from deepteach.core.feature import Feature
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError


class Reading(AbstractTeacher):
    """A teacher of features: what they remember and what they are fitted on reaches each of them.

    Args:
        features: what it reads of a sample, side by side.

    Raises:
        ConfigError: no features, or something that is not a `Feature`.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        super().__init__()
        if not features or not all(isinstance(item, Feature) for item in features):
            raise ConfigError(f"{type(self).__name__} takes a non-empty list of dt.Feature objects")
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
        return any(feature.reads_trusted for feature in self._each_feature())

    def _each_feature(self) -> list[Feature]:
        return cast(list[Feature], list(self.features))  # as they were when it was made
