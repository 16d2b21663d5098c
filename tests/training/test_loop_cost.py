"""What a run says that teaching will take is measured on copies, and is of the whole run."""

from __future__ import annotations

import copy

import pytest
import torch
from toy import arrays
from toy_training import SCHEDULE, built

import deepteach as dt
from deepteach.core.adjoint.one_step import Lookahead
from deepteach.data.dataset import Data, from_arrays
from deepteach.teachers.method import Method
from deepteach.training.loop_cost import LoopCost, loop_cost


@pytest.fixture(scope="module")
def data() -> Data:
    return from_arrays(**arrays(train=75, valid=24))


def test_nothing_moves(data: Data) -> None:
    made = built(data, SCHEDULE)
    for _, _end in zip(range(4), made.loop.epoch_steps(), strict=False):
        pass
    before, drawn = copy.deepcopy(made.loop.state_dict()), torch.get_rng_state()
    found = loop_cost(made)
    assert found is not None and found.plain > 0 and found.taught > 0
    after = made.loop.state_dict()
    assert after["step"] == before["step"] and torch.equal(torch.get_rng_state(), drawn)
    for name, leaf in before["student"].items():
        assert torch.equal(leaf, after["student"][name]), name
    for name, leaf in before["coach"]["teacher"].items():
        assert torch.equal(leaf, after["coach"]["teacher"][name]), name


@pytest.mark.parametrize("method", [Method(dt.Uniform()), Method(dt.MetaWeightNet(), Lookahead())])
def test_what_is_not_taught_after_steps_is_not_measured(method: Method, data: Data) -> None:
    assert loop_cost(built(data, method=method)) is None


def test_what_teaching_adds() -> None:
    """A taught step is 1 s dearer than a plain one of 2 s, an update takes 10 s, the first 40."""
    cost = LoopCost(plain=2, taught=3, update=10, first=40)
    assert cost.added(5, 100) == 100 + 20 * 10 + 3 * 30  # the 1st, 4th and 16th are examined
    assert cost.whole(5, 100, 40.0) == pytest.approx(390 / 240)
