"""A snapshot tells which samples of the user's a batch holds, and where they come from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy import arrays
from toy_training import SCHEDULE, training

import deepteach as dt
from deepteach.core.snapshot import Snapshot
from deepteach.data.dataset import Data, from_arrays
from deepteach.rng import stream
from deepteach.teachers.group import TRUSTED
from deepteach.teachers.method import Method
from deepteach.teachers.trusted_set import Merged
from deepteach.training.schedule import batches

GROUPS = [f"source {row // 25}" for row in range(75)]


class Watching(dt.Uniform):
    """Notes the names of every batch that it weighs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor | None, Tensor | None, Tensor]] = []

    def forward(self, snapshot: Snapshot) -> Tensor:
        self.seen.append((snapshot.index, snapshot.group, snapshot.labels))
        return super().forward(snapshot)


@pytest.fixture(scope="module")
def data() -> Data:
    return from_arrays(**arrays(train=75, valid=24), group_train=GROUPS)


def test_index_and_group_are_those_of_the_batch(data: Data) -> None:
    teacher = Watching()
    for _ in training(data, replace(SCHEDULE, epochs=1), method=Method(teacher)).epoch_steps():
        pass
    order = batches(75, 16, stream(0, "order", 0))
    rows = [index.tolist() for index, _, _ in teacher.seen if index is not None]
    assert len(rows) == len(teacher.seen) >= len(order)
    assert {tuple(part) for part in rows} == {tuple(part.tolist()) for part in order}
    for index, group, labels in teacher.seen:
        assert index is not None and group is not None and index.dtype == torch.int64
        assert group.tolist() == [row // 25 for row in index.tolist()]
        assert torch.equal(labels, data.y_train[index])


def test_trusted_samples_that_train_along_are_numbered_from_n(data: Data) -> None:
    teacher = Watching()
    method = Method(teacher, curriculum=Merged())
    for _ in training(data, replace(SCHEDULE, epochs=3), method=method).epoch_steps():
        pass
    index = torch.cat([index for index, _, _ in teacher.seen if index is not None])
    group = torch.cat([group for _, group, _ in teacher.seen if group is not None])
    labels = torch.cat([labels for _, _, labels in teacher.seen])
    assert 75 <= int(index.max()) < 99
    assert bool((group[index >= 75] == TRUSTED).all())
    assert torch.equal(group[index < 75], index[index < 75] // 25)
    assert torch.equal(labels, torch.cat([data.y_train, data.y_valid])[index])


def test_without_sources_there_is_no_group(data: Data) -> None:
    teacher = Watching()
    next(training(replace(data, group=None), method=Method(teacher)).epoch_steps())
    assert all(group is None and index is not None for index, group, _ in teacher.seen)
