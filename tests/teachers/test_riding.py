"""The trusted set as a source: one half rides, the other teaches, and they change places."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from method_training import rows_of, trained
from torch import Tensor

from deepteach.data.dataset import Data
from deepteach.errors import ConfigError
from deepteach.teachers.method import Method
from deepteach.teachers.riding import RidersWeighed, Riding
from deepteach.teachers.uniform import Uniform


@pytest.mark.parametrize("swapped", [False, True])
def test_no_sample_that_rides_teaches_in_the_same_epoch(data: Data, swapped: bool) -> None:
    made = trained(data, Method(Uniform(), curriculum=Riding(1 / 4, swapped=swapped)), epochs=4)
    riders, teachers = [], []
    for epoch in range(4):
        made.step = epoch * made.per_epoch
        rows = made.curriculum.choose(made, torch.arange(20))
        riders.append(made.curriculum._half(made, rides=True))  # type: ignore[attr-defined]
        judging = set(made.judging().tolist())
        assert swapped or not judging & set(riders[-1].tolist())
        assert len(judging) == (len(data.y_valid) if swapped else len(data.y_valid) // 2)
        assert set((rows[20:] - 200).tolist()) <= set(riders[-1].tolist())
        teaching = made.curriculum.teaching(made)
        assert teaching is not None
        teachers.append(teaching)
        assert len(rows) == 25 and torch.equal(rows[:20], torch.arange(20))
        assert not set(riders[-1].tolist()) & set(teaching.tolist())
    assert torch.equal(riders[1], teachers[0] if swapped else riders[0])
    assert torch.equal(riders[2], riders[0])
    both = torch.cat([riders[0], teachers[0]]).sort().values
    assert torch.equal(both, torch.arange(len(data.y_valid)))
    halves = [data.y_valid[half].bincount(minlength=3) for half in (riders[0], teachers[0])]
    assert int((halves[0] - halves[1]).abs().max()) <= 1  # alike in their labels


def test_trusted_batches_come_from_the_half_that_teaches(data: Data) -> None:
    made = trained(data, Method(Uniform(), curriculum=Riding()), epochs=2)
    teaching = made.curriculum.teaching(made)
    assert teaching is not None
    x, y = made.trusted(0)
    known = {tuple(row.tolist()) for row in made.x_valid[teaching]}
    assert len(y) == len(teaching) and {tuple(row.tolist()) for row in x} <= known


def test_an_epoch_has_as_many_steps_as_without_riders(data: Data) -> None:
    epochs = rows_of(trained(data, Method(Uniform(), curriculum=Riding()), epochs=2))
    assert [len(rows) for rows in epochs] == [10, 10]
    own: list[Tensor] = [rows[rows < 200] for rows in epochs[0]]
    assert torch.equal(torch.cat(own).sort().values, torch.arange(200))
    assert all(len(rows[rows >= 200]) == round(len(rows[rows < 200]) / 8) for rows in epochs[0])


@pytest.mark.parametrize("name", ["riding+weight=3", "logit-adjustment+riding=3"])
def test_untaught_controls_let_all_of_them_ride_at_a_fixed_weight(data: Data, name: str) -> None:
    made = trained(data, name)
    steps = rows_of(made)
    drawn = torch.cat([rows[rows >= 200] for epoch in steps for rows in epoch])
    assert len(drawn) == 40 and len(set(drawn.tolist())) > 25  # of 60, drawn again and again
    assert made.judging().tolist() == list(range(60))
    weights, rows = made.coach.last_weights, steps[-1][-1]
    ratio = weights[rows >= 200].mean() / weights[rows < 200].mean()
    assert float(ratio) == pytest.approx(3, rel=1e-4)
    with pytest.raises(ConfigError, match="above 0"):
        RidersWeighed(0.0)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        Riding(share)


def test_so_few_trusted_samples_do_not_ride(data: Data) -> None:
    few = replace(data, x_valid=data.x_valid[:3], y_valid=data.y_valid[:3])
    made = trained(few, Method(Uniform(), curriculum=Riding()), epochs=1)
    assert torch.equal(made.curriculum.choose(made, torch.arange(20)), torch.arange(20))
    assert made.trusted(0)[0] is made.x_valid and made.judging().tolist() == [0, 1, 2]
