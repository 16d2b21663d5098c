"""Samples that are read on access train as arrays do, to the bit, and are not held."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lazy_sets import Failing, Listed
from left_behind import results
from resuming import stop
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)
from toy import Probe, arrays, dropout

from deepteach.data.lazy import Access, LazyRows
from deepteach.data.scaling import divisor
from deepteach.errors import DataError
from deepteach.training.api import Result, train
from deepteach.training.signals import Interrupted

A = arrays(train=50, valid=30, test=30)
PARTS = [(A[f"x_{k}"], A[f"y_{k}"]) for k in ("train", "valid", "test")]
SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 16, "interval": 3, "baseline": False}


def go(parts: list[Any], model: nn.Module | str | None = None, **options: Any) -> Result:
    torch.manual_seed(3)
    return train(dropout(3) if model is None else model, *parts, **{**SMALL, **options})


def bits(result: Result) -> Any:
    tensors = [*result.model.state_dict().values(), *result.coach.teacher.state_dict().values()]
    other = {"seconds", "data_identity"}  # what is read on access is known by other digests
    figures = {k: v for k, v in result.summary.items() if k not in other}
    return [leaf.tolist() for leaf in (*tensors, result.trust.weight)], figures


@pytest.fixture(scope="module")
def held() -> Any:
    return bits(go(PARTS))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_bits_as_arrays(workers: int, held: Any) -> None:
    """The student draws in its passes; reading draws nothing from its generator."""
    sets = [Listed(*part) for part in PARTS]
    assert bits(go(sets, workers=workers)) == held
    assert workers or sorted(set(sets[0].reads)) == list(range(50))


def test_a_loader_stands_for_its_dataset(held: Any) -> None:
    loaders = [DataLoader(Listed(*part), batch_size=16, shuffle=True) for part in PARTS]
    torch.manual_seed(3)
    small = {key: value for key, value in SMALL.items() if key != "batch_size"}
    assert bits(train(dropout(3), *loaders, **small)) == held


def test_every_row_once_an_epoch_and_never_all_at_once() -> None:
    """One pass before, one an epoch, one to weigh them at the end."""
    sets = [Listed(*part) for part in PARTS]
    go(sets, teacher="uniform")
    reads = sets[0].reads
    passes = [reads[2:52], reads[54:104], reads[104:154], reads[154:]]  # the first row is looked at
    assert [sorted(rows) for rows in passes] == [list(range(50))] * 4
    assert passes[1] != passes[2] != sorted(passes[2])
    assert reads[52:54] == [0, 1]  # to find the width of the states


@pytest.mark.parametrize("method", ["l2t-data+episodes=1", "jtt"])
def test_curricula_that_choose_rows(method: str) -> None:
    options = {"teacher": method, "interval": None, "epochs": 1}
    expected = go(PARTS, "mlp", **options)
    assert bits(go([Listed(*part) for part in PARTS], "mlp", **options)) == bits(expected)


def test_bytes_are_scaled_as_arrays_are() -> None:
    """They travel as bytes; the numbers that the student sees are those of arrays."""
    draw = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = draw.integers(0, 256, (80, 6, 6, 3), dtype=np.uint8)
    rows = LazyRows.of(Listed(x, y), "x")
    assert rows.raw_dtype == np.uint8 and rows.shape == (80, 3, 6, 6)
    seen: list[Tensor] = []

    class Net(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            seen.append(input)
            return super().forward(input)

    for part in (lambda *a: a, Listed):
        model = Net(nn.Flatten(), nn.Linear(108, 2))
        train(
            model,
            *(part(x[:60], y[:60]), part(x[60:], y[60:])),
            **{**SMALL, "teacher": "uniform", "epochs": 1},
        )
    half = len(seen) // 2
    for left, right in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


def test_scaled_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a whole batch in float64, and the same bits."""
    x = np.random.default_rng(0).integers(256, size=(40, 3, 5, 5), dtype=np.uint8)
    rows = LazyRows.of(Listed(x, np.arange(40) % 2), "x")
    mean, std = rows.moments.spread()
    rows = rows.scaled(mean, divisor(mean, std))
    whole, sizes = rows[torch.arange(40)], []
    double = Tensor.double
    monkeypatch.setattr(Tensor, "double", lambda own: (sizes.append(len(own)), double(own))[1])
    monkeypatch.setattr("deepteach.data.lazy.DOUBLES_AT_ONCE", 7 * 75 + 74)
    assert torch.equal(rows[torch.arange(40)], whole) and sizes == [7] * 5 + [5]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_split_off_part_and_groups(workers: int, tmp_path: Path) -> None:
    x, y, group = A["x_train"], A["y_train"], [f"s{i % 2}" for i in range(50)]
    ends = []
    for place, part in (("a", (x, y, group)), ("b", Listed(x, y, group))):
        with pytest.warns(UserWarning, match="no x_valid|only"):
            go([part], out=tmp_path / place, workers=workers)
        ends.append(results(tmp_path / place))
        # What is read on access is known by its labels and its kind of reading.
        ends[-1]["summary.json"][0].pop("data_identity")
    assert ends[0] == ends[1] and "groups.csv" in ends[0]


@pytest.mark.parametrize(("before", "after"), [(2, 2), (0, 2), (2, 0)])
def test_killed_and_resumed_within_an_epoch(before: int, after: int, tmp_path: Path) -> None:
    """Random augmentation in the dataset, read by any number of workers."""
    parts = [Listed(*PARTS[0], draws=True), *(Listed(*part) for part in PARTS[1:])]
    go(parts, out=tmp_path / "straight")
    with pytest.raises(Interrupted):
        probe = Probe(5, stop)
        go(parts, out=tmp_path / "run", watch=probe.watch, workers=before)
    probe = Probe()
    go(parts, out=tmp_path / "run", watch=probe.watch, workers=after, resume=True)
    assert probe.steps[0] == 6
    assert results(tmp_path / "run") == results(tmp_path / "straight")


def test_draws_are_named_by_seed_epoch_and_row() -> None:
    x = np.zeros((9, 2), np.float32)
    rows = LazyRows.of(Listed(x, np.arange(9) % 2, draws=True), "x", Access(seed=5))
    parts = [torch.tensor([4, 2]), torch.tensor([2, 8])]
    states = random.getstate(), torch.get_rng_state(), np.random.get_state(legacy=False)
    rows.announce(0, parts)
    first, second = rows[parts[0]], rows[parts[1]]
    assert torch.equal(first[1], second[0]) and not torch.equal(first[0], first[1])
    rows.announce(1, parts)
    assert not torch.equal(rows[parts[0]], first)
    rows.announce(0, parts)
    assert torch.equal(rows[parts[1]], second)  # the first was passed over
    assert torch.equal(rows[torch.tensor([4])][0], first[0])  # nobody announced this one
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    after = np.random.get_state(legacy=False)
    assert np.array_equal(after["state"]["key"], states[2]["state"]["key"])
    assert after["state"]["pos"] == states[2]["state"]["pos"]


def test_a_generator_of_its_own_is_told() -> None:
    class Own(Listed):
        draw = np.random.default_rng(0)

        def __getitem__(self, row: int) -> Any:
            return self.draw.normal(size=2), row % 2

    x = LazyRows.of(Own(np.zeros(9), 0), "train_data")
    assert any("a resumed run will not repeat its bits" in note for note in x.found.notes)


def refused(part: Any, words: str, **options: Any) -> None:
    with pytest.raises(DataError) as caught:
        go([part, *PARTS[1:]], **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read(workers: int) -> None:
    words = "row 7 of train_data cannot be read (OSError: the disk is gone)"
    refused(Failing(*PARTS[0]), words, workers=workers)


def kill_a_worker() -> None:
    """As a machine does that is short of memory, while the run is busy elsewhere."""
    multiprocessing.active_children()[0].kill()
    time.sleep(0.3)  # in which the signal about its end arrives


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed(workers: int) -> None:
    """It is told where its answer is waited for, and not in the middle of a step."""
    probe = Probe(5, kill_a_worker)
    parts = [Listed(*PARTS[0]), *PARTS[1:]]
    with pytest.raises(DataError, match="a process that reads samples has ended .*lower workers"):
        go(parts, workers=workers, watch=probe.watch, epochs=20)
    assert probe.steps[-1] >= 5


def test_what_cannot_be_trained_on() -> None:
    x, y = PARTS[0]

    def spoilt(row: int, value: Any, what: str = "x") -> Listed:
        made = Listed(list(x), list(y))
        getattr(made, what)[row] = value
        return made

    refused(spoilt(31, x[0] * np.nan), "train_data holds nan in row 31 (feature 0)")
    refused(spoilt(31, x[0][:3]), "item 31 of train_data has shape (3,), item 0 (8,)")
    refused(spoilt(31, "text", "y"), "labels of type")
    refused(spoilt(31, 17, "y"), "label 17")
    refused(Listed(PARTS[1][0], PARTS[1][1]), "also training rows")
    refused(Listed([], []), "train_data is empty")

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    refused(Endless(), "map-style Dataset, which has a length")
    sampler = WeightedRandomSampler([1.0] * 50, 50)
    refused(DataLoader(Listed(x, y), sampler=sampler), "a DataLoader with a sampler of its own")
    for own in (
        RandomSampler(Listed(x, y), replacement=True),
        RandomSampler(Listed(x, y), num_samples=40),
        SequentialSampler(range(40)),
    ):
        refused(DataLoader(Listed(x, y), sampler=own), "a DataLoader with a sampler of its own")
    loader = DataLoader(Listed(x, y), collate_fn=lambda batch: batch)
    refused(loader, "a DataLoader with a collate_fn of its own")


def test_trusted_samples_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepteach.data.memory.available", lambda: 1000)
    with pytest.raises(DataError, match=r"valid_data with 30 samples would take .* give fewer"):
        go([Listed(*part) for part in PARTS])
