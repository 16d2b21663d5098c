"""The figures of one method's rows, by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepteach.errors import DataError
from deepteach.report.table import UNKNOWN, mean_std

Rows = Sequence[Mapping[str, str]]


def by_seed(seeds: Mapping[str, Mapping[str, str]], column: str) -> dict[str, float]:
    """The figures of a column by seed, in the order of seeds; empty ones left out.

    Raises:
        DataError: a figure that is not a number.
    """
    try:
        ordered = sorted(seeds, key=int)
        return {seed: float(seeds[seed][column]) for seed in ordered if seeds[seed].get(column)}
    except ValueError as error:
        raise DataError(f"a figure of column {column} is not a number: {error}") from error


def ranking(values: Sequence[float]) -> str:
    """AUROCs; nothing where the weights are all alike: exactly one half, for every seed."""
    return UNKNOWN if all(value == 0.5 for value in values) else mean_std(values, 3)
