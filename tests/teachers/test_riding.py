"""The trusted set as a source: one half rides, the rest teaches, the halves change places."""

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


def places(mask: Tensor) -> set[int]:
    return set(mask.nonzero().squeeze(1).tolist())


def test_no_sample_that_rides_teaches_in_the_same_epoch(data: Data) -> None:
    made = trained(data, Method(Uniform(), curriculum=Riding(1 / 4)), epochs=4)
    riders, everyone = [], set(range(len(data.y_valid)))
    judging = set(made.judging().tolist())
    assert len(judging) == len(everyone) // 5
    for epoch in range(4):
        made.step = epoch * made.per_epoch
        rows = made.curriculum.choose(made, torch.arange(20))
        riders.append(places(made.curriculum._riding(made)))  # type: ignore[attr-defined]
        assert set(made.judging().tolist()) == judging
        assert len(rows) == 25 and torch.equal(rows[:20], torch.arange(20))
        assert set((rows[20:] - 200).tolist()) <= riders[-1]
        teaching = made.curriculum.teaching(made)
        assert teaching is not None
        assert set(teaching.tolist()) == everyone - riders[-1] and judging <= everyone - riders[-1]
    assert riders[2] == riders[0] and riders[3] == riders[1]
    assert not riders[0] & riders[1] and riders[0] | riders[1] | judging == everyone
    counts = [data.y_valid[sorted(half)].bincount(minlength=3) for half in riders[:2]]
    assert int((counts[0] - counts[1]).abs().max()) <= 2  # alike in their labels


def test_trusted_batches_come_from_those_that_teach(data: Data) -> None:
    made = trained(data, Method(Uniform(), curriculum=Riding()), epochs=2)
    teaching = made.curriculum.teaching(made)
    assert teaching is not None
    x, y = made.trusted(0)
    known = {tuple(row.tolist()) for row in made.x_valid[teaching]}
    assert len(y) == min(len(teaching), 30) and {tuple(row.tolist()) for row in x} <= known


def test_an_epoch_has_as_many_steps_as_without_riders(data: Data) -> None:
    epochs = rows_of(trained(data, Method(Uniform(), curriculum=Riding()), epochs=2))
    assert [len(rows) for rows in epochs] == [10, 10]
    own: list[Tensor] = [rows[rows < 200] for rows in epochs[0]]
    assert torch.equal(torch.cat(own).sort().values, torch.arange(200))
    assert all(len(rows[rows >= 200]) == round(len(rows[rows < 200]) / 8) for rows in epochs[0])


def test_riders_of_a_large_trusted_set_are_drawn_as_often_as_others(data: Data) -> None:
    """It would be seen less often than the training set, and most of it would be of no use."""
    few = replace(data, x_train=data.x_train[:40], y_train=data.y_train[:40], rows=data.rows[:40])
    made = trained(few, Method(Uniform(), curriculum=Riding()), epochs=2)
    drawn = sum(int((rows >= 40).sum()) for rows in rows_of(made)[0])
    riding = made.curriculum._riding(made)  # type: ignore[attr-defined]
    assert int(riding.sum()) == 24 and 23 <= drawn <= 25 and 24 > 40 / 8
    assert made.curriculum.added(made, 20) == 12
    made.curriculum = Riding(1 / 8)
    assert made.curriculum.added(made, 20) == 2


def test_riders_of_a_small_trusted_set_are_not_drawn_until_they_are_known_by_heart(
    data: Data,
) -> None:
    """An eighth of each batch of 100 would be 12 of them: every one of 4 in 3,000 in each batch."""
    assert isinstance(data.x_train, Tensor)
    many, few = data.x_train.repeat(15, 1), slice(0, 10)
    large = replace(
        data,
        x_train=many,
        y_train=data.y_train.repeat(15),
        y_clean=None,
        rows=torch.arange(len(many)),
        x_valid=data.x_valid[few],
        y_valid=data.y_valid[few],
    )
    made = trained(large, Method(Uniform(), curriculum=Riding()), epochs=2)
    riding = int(made.curriculum._riding(made).sum())  # type: ignore[attr-defined]
    assert riding == 4 and made.curriculum.added(made, 100) == round(12 * 100 * 4 / 3000)
    made.curriculum = Riding(1 / 8)  # asked for
    assert made.curriculum.added(made, 100) == 12


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
    few = replace(data, x_valid=data.x_valid[:4], y_valid=data.y_valid[:4])
    made = trained(few, Method(Uniform(), curriculum=Riding()), epochs=1)
    assert torch.equal(made.curriculum.choose(made, torch.arange(20)), torch.arange(20))
    assert made.trusted(0)[0] is made.x_valid and made.judging().tolist() == [0, 1, 2, 3]
