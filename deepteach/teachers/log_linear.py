"""A weight that is a product of factors: one learned number for each thing that is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepteach.core.feature import Feature
from deepteach.core.snapshot import Snapshot
from deepteach.teachers.group import rides
from deepteach.teachers.reading import Reading


class LogLinear(Reading):
    """w = exp(sum_j a_j f_j / s_j), f the features side by side and s their units.

    All a_j start at 0 unless `evidence` is given, so teaching begins as plain training, and what
    is never moved stays plain. For a feature that is `evidence`, of which more speaks for the
    given label, a_j stays at 0 or above: a step's gain comes from what is not learned yet, and
    would else turn trust upside down (the short-horizon bias of Wu et al., ICLR 2018).

    A trusted sample that rides along in a batch counts 1. A number of its own was taught at first
    and grew to 30: what pulls towards the few trusted samples lowers the next trusted loss, and
    costs accuracy in a long training (LOG.md).

    Args:
        features: what it reads of a sample.
        evidence: where the numbers of features that are `evidence` start.

    Raises:
        ConfigError: no features, or something that is not a `Feature`.
    """

    def __init__(self, features: Sequence[Feature], *, evidence: float = 0.0) -> None:
        super().__init__(features)
        self.factors = nn.ParameterList(
            nn.Parameter(torch.full((feature.width,), evidence if feature.evidence else 0.0))
            for feature in features
        )

    def forward(self, snapshot: Snapshot) -> Tensor:
        pairs = zip(self._each_feature(), self.factors, strict=True)
        heard = [a if feature.heard is None else a * feature.heard for feature, a in pairs]
        return self._product(snapshot, heard)

    def log_trust(self, snapshot: Snapshot) -> Tensor:
        """The same, but that what is not heard still ranks the samples, by itself."""
        factors = [
            factor
            if feature.heard is None
            else torch.where(feature.heard > 0, factor, factor.new_tensor(feature.unit))
            for feature, factor in zip(self._each_feature(), self.factors, strict=True)
        ]
        return self._product(snapshot, factors)

    def _product(self, snapshot: Snapshot, factors: Sequence[Tensor]) -> Tensor:
        total = torch.zeros_like(snapshot.losses)
        for feature, factor in zip(self._each_feature(), factors, strict=True):
            unit = factor.new_tensor(feature.unit)
            total = total + self._read(feature, snapshot).to(factor.dtype) @ (factor / unit)
        return total * (1 - rides(snapshot).to(total.dtype))

    def fit(self, trusted: Snapshot) -> None:
        with torch.no_grad():
            for feature, factor in zip(self._each_feature(), self.factors, strict=True):
                if feature.evidence:
                    factor.clamp_(min=0)
        super().fit(trusted)

    @property
    def reads_trusted(self) -> bool:
        evidence = any(feature.evidence for feature in self._each_feature())
        return evidence or super().reads_trusted
