"""Trusted batches: read in turn, reproducibly, without touching the global generator."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import deepteach as dt
from deepteach.core.batches.trusted_batches import TrustedBatches
from deepteach.errors import DataError
from deepteach.integrations.teaching import OnDevice

X, Y = torch.arange(10.0).unsqueeze(1), torch.arange(10)


def loader(shuffle: bool = True) -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=shuffle)


def reader(source: Any) -> TrustedBatches:
    made = TrustedBatches()
    made.source = source
    return made


def drawn(batches: TrustedBatches, count: int) -> list[list[int]]:
    return [batches.next()[1].tolist() for _ in range(count)]


def test_one_batch_is_read_again_and_again() -> None:
    batches = reader((X, Y))
    for _ in range(2):
        x, y = batches.next()
        assert x is X and y is Y


@pytest.mark.parametrize(
    "source", [[(X[:4], Y[:4]), (X[4:], Y[4:])], ((X[:4], Y[:4]), (X[4:], Y[4:]))]
)
def test_sequences_of_batches_are_read_in_turn(source: Any) -> None:
    assert drawn(reader(source), 3) == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], [0, 1, 2, 3]]


def test_loader_is_read_epoch_after_epoch() -> None:
    rows = drawn(reader(loader()), 6)
    assert sorted(sum(rows[:3], [])) == sorted(sum(rows[3:], [])) == list(range(10))
    assert rows[:3] != rows[3:]


def test_a_function_is_called_where_a_batch_is_needed() -> None:
    count = iter(range(9))
    batches = reader(lambda: (X[: (k := next(count))], Y[:k]))
    assert drawn(batches, 3) == [[], [0], [0, 1]]
    with pytest.raises(DataError, match="function of trusted data must return .x, y. batches, got"):
        reader(lambda: X).next()


def test_a_function_is_not_called_between_updates() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(1, 10))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    teacher = dt.Teacher([dt.Loss()])
    coach = dt.Coach(dt.Student(module, "0"), optimizer, teacher, interval=4, window=2)
    asked: list[int] = []

    def trusted() -> tuple[Tensor, Tensor]:
        asked.append(coach.clock.step)
        return X, Y

    for _ in range(12):
        optimizer.zero_grad()
        coach.loss(X, Y).backward()
        optimizer.step()
        coach.update(trusted)
    assert asked == [4, 8, 12]


@pytest.mark.parametrize("cut", range(7))
def test_resumed_reader_goes_on_with_the_same_batches(cut: int) -> None:
    straight = drawn(reader(loader()), 8)
    first = reader(loader())
    head = drawn(first, cut)
    second = reader(loader())
    second.load_state_dict(first.state_dict())
    torch.manual_seed(99)
    assert head + drawn(second, 8 - cut) == straight


def test_global_generator_is_untouched_and_not_read() -> None:
    batches, state = reader(loader()), torch.get_rng_state()
    rows = drawn(batches, 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert drawn(reader(loader()), 4) == rows


@pytest.mark.parametrize(
    "source, words",
    [(None, "pass"), ([], "empty"), ([Y], "got Tensor"), ([{"x": X}], "got dict")],
)
def test_useless_sources_are_refused(source: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        reader(source).next()


def test_inputs_may_be_tuples_or_dicts() -> None:
    inputs: list[Any] = [(X, X), {"a": X}]
    for value in inputs:
        x, y = reader([(value, Y)]).next()
        assert x is value and isinstance(y, Tensor)


class Augmented(Dataset):
    """Samples that a library of numbers of its own moves about."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 10

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return torch.tensor([self.draw()]), place


DRAWS = (random.random, np.random.rand, lambda: torch.rand(()).item())


def numbers(batches: TrustedBatches, count: int) -> list[list[float]]:
    found = []
    for _ in range(count):
        x, _ = batches.next()
        assert isinstance(x, Tensor)
        found.append(x.flatten().tolist())
    return found


def standing() -> list[Any]:
    """Where the global generators stand."""
    arrays: Any = np.random.get_state()
    return [random.getstate(), arrays[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("draw", DRAWS, ids=["python", "numpy", "torch"])
def test_what_samples_draw_differs_by_batch_and_comes_again_on_resume(draw: Any) -> None:
    whole = numbers(reader(DataLoader(Augmented(draw), batch_size=4)), 8)
    assert len({value for batch in whole for value in batch}) == 28  # nothing is drawn twice
    later = reader(DataLoader(Augmented(draw), batch_size=4))
    later.load_state_dict({"epoch": 1, "position": 2})
    before = standing()
    assert numbers(later, 3) == whole[5:]
    assert standing() == before


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_loader_with_a_generator_of_its_own_goes_on_where_it_was(wrapped: bool) -> None:
    def source() -> tuple[Any, torch.Generator]:
        own = torch.Generator().manual_seed(5)
        made = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, generator=own)
        return (OnDevice(made, lambda batch: batch) if wrapped else made), own

    whole = drawn(reader(source()[0]), 12)
    assert whole[:3] != whole[3:6] != whole[6:9]
    given, own = source()
    later = reader(given)
    later.load_state_dict({"epoch": 2, "position": 1})
    assert drawn(later, 5) == whole[7:]
    assert torch.equal(own.get_state(), torch.Generator().manual_seed(5).get_state())


def test_an_iterator_that_runs_out_is_told_apart_from_an_empty_loader() -> None:
    batches = reader((X, Y) for _ in range(2))
    drawn(batches, 2)
    with pytest.raises(DataError, match="used up, and an iterator cannot be read again"):
        batches.next()
    with pytest.raises(DataError, match="the trusted loader is empty"):
        reader([]).next()
