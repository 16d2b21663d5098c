"""A stratified part is split off; what cannot be split is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_cases import refused, rng

from deepteach.data.splits import stratified_split

torch.set_num_threads(1)


@pytest.mark.parametrize("size", [1, 7, 30, 0.25, 0.5])
def test_stratified_split_is_a_partition_in_proportion(size: float) -> None:
    y = rng(3).choice(4, p=[0.1, 0.2, 0.3, 0.4], size=100)
    rest, part = stratified_split(y, size, seed=0)
    wanted = size if isinstance(size, int) else round(size * 100)
    assert len(part) == wanted
    assert sorted([*rest, *part]) == list(range(100))
    share = np.bincount(y) * wanted / 100
    assert (np.abs(np.bincount(y[part], minlength=4) - share) < 1).all()
    again, other = stratified_split(y, size, seed=0), stratified_split(y, size, seed=1)
    assert (again[1] == part).all() and (other[1] != part).any()


def test_split_leaves_a_sample_of_every_class() -> None:
    y = np.repeat([0, 1, 2], [50, 2, 1])
    rest, part = stratified_split(y, 10, seed=0, least=2)
    assert np.bincount(y[rest]).tolist() == [40, 1, 1]
    assert np.bincount(y[part]).tolist() == [10, 1]


@pytest.mark.parametrize("size", [0, 100, -1, 0.0, 1.0])
def test_impossible_splits_are_refused(size: float) -> None:
    refused(lambda: stratified_split(np.arange(100) % 2, size, 0), "off 100: expected 1..99")
