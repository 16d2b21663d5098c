"""Paired differences to a baseline: t interval, Wilcoxon as a check, Holm's correction."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy import stats

from deepteach.report.table import UNKNOWN

_Key = TypeVar("_Key", bound=Hashable)

ALPHA = 0.05
LITTLE_POWER = 5  # pairs up to which no test can show much
_EXACT = 1e-9  # points; a spread below it is the rounding of equal differences


@dataclass(frozen=True)
class Gain:
    """Paired differences to the uniform baseline, in points, one per shared seed.

    The interval is the t interval of the mean, d ± t(.975, n-1) s/sqrt(n); the p value is
    of the same t test, Holm-corrected over the methods of one setting; Wilcoxon's signed
    ranks are a check that asks for no normality. All None with fewer than two pairs.
    """

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    p_wilcoxon: float | None

    @property
    def points(self) -> str:
        """The mean with its spread."""
        return f"{self.mean:+.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")

    @property
    def interval(self) -> str:
        """Its ends, as in `+0.10 to +0.35`."""
        if self.low is None or self.high is None:
            return UNKNOWN
        return f"{self.low:+.2f} to {self.high:+.2f}"

    @property
    def verdict(self) -> str:
        """What may be said, in words: no gain is claimed within the spread of the seeds."""
        if self.std is None:
            return "one seed: no interval"
        if self.mean == 0 or abs(self.mean) < self.std:
            return "no difference shown"
        if self.p_holm is None:
            return "the same difference in every seed"
        side = "better" if self.mean > 0 else "worse"
        return side if self.p_holm < ALPHA else f"{side} here, not significant"


def paired_gains(differences: Mapping[_Key, Sequence[float]]) -> dict[_Key, Gain]:
    """The gains of several methods over one baseline, with Holm's correction over them."""
    gains = {name: _gain(np.asarray(d, dtype=float)) for name, d in differences.items()}
    known = {name: gain.p for name, gain in gains.items() if gain.p is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    return {name: replace(gain, p_holm=adjusted.get(name)) for name, gain in gains.items()}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down p values: the i-th smallest of m times m-i+1, made monotone."""
    order = np.argsort(p_values, kind="stable")
    m, adjusted, running = len(p_values), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def _gain(d: np.ndarray) -> Gain:
    n, mean = len(d), float(d.mean())
    if n < 2:
        return Gain(n, mean, None, None, None, None, None, None)
    ranked = np.round(d, 9)  # equal differences are ties, whatever their rounding
    signed = float(np.asarray(stats.wilcoxon(ranked))[1]) if ranked.any() else None
    std = float(d.std(ddof=1))
    if std < _EXACT:  # no spread: the t value does not exist
        return Gain(n, mean, 0.0, mean, mean, None, None, signed)
    test = stats.ttest_1samp(d, 0.0)
    interval = test.confidence_interval(1 - ALPHA)
    low, high = float(interval.low), float(interval.high)
    return Gain(n, mean, std, low, high, float(np.asarray(test)[1]), None, signed)
