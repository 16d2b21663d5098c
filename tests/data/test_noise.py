"""Label noise: rates, the published generator draw by draw, and what stays untouched."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from deepteach.data.dataset import Data, from_arrays
from deepteach.data.noise import Kind, corrupt, flip, mwn_corrupt, mwn_split, uniform
from deepteach.errors import ConfigError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def labels(n: int = 5000, classes: int = 10) -> np.ndarray:
    return rng(99).integers(classes, size=n)


@contextmanager
def global_state() -> Iterator[None]:
    """The recipe under test uses NumPy's global stream: put it back afterwards."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


def legacy_state() -> str:
    return repr([np.asarray(v).tolist() for v in np.random.get_state(legacy=True)])


def recipe(
    given: list[int], num_meta: int, classes: int, kind: str, rate: float, seed: int
) -> tuple[list[int], list[int], list[int]]:
    """The documented steps on the global stream: (train index, meta index, noisy labels)."""
    np.random.seed(seed)
    groups = {j: [i for i, y in enumerate(given) if y == j] for j in range(classes)}
    meta: list[int] = []
    train: list[int] = []
    for members in groups.values():
        np.random.shuffle(members)
        meta += members[: num_meta // classes]
        train += members[num_meta // classes :]
    if kind == "unif":
        table = rate * np.full((classes, classes), 1 / classes)
        table = table + (1 - rate) * np.eye(classes)
    else:
        np.random.seed(1)
        table = np.eye(classes) * (1 - rate)
        for i in range(classes):
            others = [j for j in range(classes) if j != i]
            if kind == "flip":
                table[i][np.random.choice(others)] = rate
            else:
                for j in np.random.choice(others, 2, replace=False):
                    table[i][j] = rate / 2
    noisy = [int(np.random.choice(classes, p=table[given[i]])) for i in train]
    return train, meta, noisy


@pytest.mark.parametrize("kind", ["unif", "flip", "flip2"])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("classes", [3, 10])
def test_mwn_equals_the_documented_recipe(kind: str, seed: int, classes: int) -> None:
    y = labels(1500, classes)
    with global_state():
        train, meta, noisy = recipe(y.tolist(), 103, classes, kind, 0.4, seed)
    ours_train, ours_meta, stream = mwn_split(y, 103, classes, seed)
    assert ours_train.tolist() == train and ours_meta.tolist() == meta
    ours, mask = mwn_corrupt(y[ours_train], kind, 0.4, classes, stream)  # pyright: ignore
    assert ours.tolist() == noisy
    assert mask.tolist() == [a != b for a, b in zip(y[train], noisy, strict=True)]


def test_mwn_split_is_a_partition_with_equal_classes() -> None:
    y = labels()
    train, meta, _ = mwn_split(y, 1000, 10)
    assert sorted([*train, *meta]) == list(range(len(y)))
    assert np.bincount(y[meta]).tolist() == [100] * 10
    assert (np.diff(y[train]) >= 0).all()


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6, 1.0])
def test_uniform_rate_and_spread(rate: float) -> None:
    y = labels(40_000)
    noisy, mask = uniform(y, rate, 10, rng())
    assert (mask == (noisy != y)).all()
    assert mask.mean() == pytest.approx(rate * 0.9, abs=0.01)
    for true in range(10):  # what is wrong is spread evenly over the other nine
        wrong = noisy[mask & (y == true)]
        share = np.bincount(wrong, minlength=10) / max(1, len(wrong))
        assert share[true] == 0
        assert rate == 0 or np.delete(share, true) == pytest.approx(1 / 9, abs=0.06)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 1.0])
def test_flip_rate_and_two_targets(rate: float) -> None:
    y = labels(40_000)
    noisy, mask = flip(y, rate, 10, rng())
    assert (mask == (noisy != y)).all()
    assert mask.mean() == pytest.approx(rate, abs=0.01)
    for true in range(10):
        targets, counts = np.unique(noisy[mask & (y == true)], return_counts=True)
        assert len(targets) == (2 if rate else 0) and true not in targets
        assert rate == 0 or counts / counts.sum() == pytest.approx(0.5, abs=0.06)


def test_similar_classes_differ_between_seeds() -> None:
    y = np.arange(10).repeat(50)
    assert (flip(y, 1, 10, rng(0))[0] != flip(y, 1, 10, rng(1))[0]).mean() > 0.3


@pytest.fixture
def clean() -> Data:
    x = rng(5).normal(size=(700, 4)).astype(np.float32)
    y = labels(700, 5)
    return from_arrays(x[:600], y[:600], x[600:], y[600:], x[600:], y[600:])


@pytest.mark.parametrize("kind", ["uniform", "flip", "mwn-uniform", "mwn-flip"])
def test_corrupt_keeps_the_truth_and_all_else(clean: Data, kind: Kind) -> None:
    states = random.getstate(), torch.get_rng_state(), legacy_state()
    before = clean.y_train.clone()
    noisy = corrupt(clean, kind, 0.4, seed=3)
    assert torch.equal(clean.y_train, before)
    assert noisy.y_clean is not None and torch.equal(noisy.y_clean, before)
    wrong = (noisy.y_train != before).float().mean().item()
    assert wrong == pytest.approx(0.4 * (0.8 if "uniform" in kind else 1), abs=0.06)
    assert noisy.y_train.dtype == torch.int64
    assert noisy.y_valid is clean.y_valid and noisy.y_test is clean.y_test
    assert noisy.x_train is clean.x_train
    assert f"{kind} noise, rate 0.4: {wrong:.1%}" in noisy.notes[-1]
    again, other = corrupt(clean, kind, 0.4, seed=3), corrupt(clean, kind, 0.4, seed=4)
    assert torch.equal(noisy.y_train, again.y_train)
    assert not torch.equal(noisy.y_train, other.y_train)
    assert states[0] == random.getstate() and torch.equal(states[1], torch.get_rng_state())
    assert states[2] == legacy_state()


def test_corrupt_puts_mwn_labels_back_in_place(clean: Data) -> None:
    given = clean.y_train.tolist()
    with global_state():
        order, _, drawn = recipe(given, 0, 5, "flip2", 0.4, seed=3)
    expected = dict(zip(order, drawn, strict=True))
    noisy = corrupt(clean, "mwn-flip", 0.4, seed=3).y_train.tolist()
    assert noisy == [expected[i] for i in range(len(given))]


def test_known_truth_is_kept(clean: Data) -> None:
    once = corrupt(clean, "uniform", 0.3, seed=0)
    twice = corrupt(once, "flip", 0.3, seed=0)
    assert once.y_clean is not None and twice.y_clean is once.y_clean
    assert not torch.equal(once.y_train, twice.y_train)


def test_none_changes_nothing(clean: Data) -> None:
    assert corrupt(clean, "none", 0.4, seed=0) is clean


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["uniform", "flip", "mwn-uniform", "mwn-flip"])
def test_rates_outside_0_1_are_refused(clean: Data, kind: Kind, rate: float) -> None:
    with pytest.raises(ConfigError, match="expected a number in 0..1"):
        corrupt(clean, kind, rate, seed=0)


def test_bad_settings_are_refused(clean: Data) -> None:
    y = labels(20, 2)
    with pytest.raises(ConfigError, match="at least 3 classes, the data has 2"):
        flip(y, 0.2, 2, rng())
    with pytest.raises(ConfigError, match="at least 3 classes"):
        mwn_corrupt(y, "flip2", 0.2, 2)
    with pytest.raises(ConfigError, match="needs the stream"):
        mwn_corrupt(y, "unif", 0.2, 2)
    with pytest.raises(ConfigError, match="num_meta is 21"):
        mwn_split(y, 21, 2)
    with pytest.raises(ConfigError, match="unknown noise kind 'flop': expected one of none"):
        corrupt(clean, "flop", 0.2, seed=0)  # pyright: ignore[reportArgumentType]
