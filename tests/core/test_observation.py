"""A teacher that remembers samples is shown every step once, and never within a window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Setting, bench
from coach_loop import DROP, MLP, NORM, everything, flat, same
from oracles import off
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.observation import Observations
from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError


class Watching(dt.AbstractTeacher):
    """Weighs by one number, and notes which samples it was shown when."""

    def __init__(self, learns: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()), requires_grad=learns)
        self.shown: list[tuple[int, list[int]]] = []

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.weight * snapshot.losses

    def observe(self, snapshot: dt.Snapshot) -> None:
        assert snapshot.index is not None and not snapshot.logits.requires_grad
        self.shown.append((snapshot.clock.step, snapshot.index.tolist()))


def steps(coach: dt.Coach, count: int) -> list[int]:
    """Train; how many steps were shown after each of them."""
    torch.manual_seed(0)
    assert isinstance(coach.teacher, Watching)
    shown = []
    for t in range(count):
        coach.optimizer.zero_grad()
        x, y = torch.randn(4, 3), torch.randint(2, (4,))
        coach.loss(x, y, index=torch.arange(4) + 4 * t).backward()
        coach.optimizer.step()
        coach.update((torch.ones(4, 3), torch.tensor([0, 1, 0, 1])))
        shown.append(len(coach.teacher.shown))
    return shown


def coach(teacher: dt.AbstractTeacher, **settings: Any) -> dt.Coach:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return dt.Coach(dt.Student(model, "2"), optimizer, teacher, **settings)


def test_steps_are_shown_when_their_window_has_closed() -> None:
    taught = coach(Watching(), interval=3, window=2)
    assert steps(taught, 7) == [0, 0, 3, 3, 3, 6, 6]
    assert isinstance(taught.teacher, Watching)
    wanted = [(t, list(range(4 * t, 4 * t + 4))) for t in range(6)]
    assert taught.teacher.shown == wanted


def test_a_teacher_that_learns_nothing_is_shown_every_step_at_once() -> None:
    assert steps(coach(Watching(learns=False), interval=3, window=2), 4) == [1, 2, 3, 4]


def test_what_waits_is_in_the_state() -> None:
    whole, begun = coach(Watching(), interval=3, window=2), coach(Watching(), interval=3, window=2)
    steps(whole, 3)
    steps(begun, 2)
    resumed = coach(Watching(), interval=3, window=2)
    resumed.student.module.load_state_dict(begun.student.module.state_dict())
    resumed.optimizer.load_state_dict(begun.optimizer.state_dict())
    resumed.load_state_dict(begun.state_dict())
    resumed.recorder.restart()
    whole_teacher, resumed_teacher = whole.teacher, resumed.teacher
    assert isinstance(whole_teacher, Watching) and isinstance(resumed_teacher, Watching)
    assert resumed_teacher.shown == whole_teacher.shown[:2]


def test_teachers_without_a_memory_keep_no_batches() -> None:
    plain = coach(dt.Teacher([dt.Loss()]), interval=3, window=2)
    plain.loss(torch.randn(4, 3), torch.tensor([0, 1, 0, 1])).backward()
    plain.optimizer.step()
    assert plain.recorder.observed.waiting == [] and not plain.teacher.observes
    assert dt.Teacher([dt.Loss(), dt.History()]).observes


class TwoRanks(Ranks):
    """The first of two ranks, whose neighbour has the same rows times ten."""

    def __init__(self) -> None:
        super().__init__(0, 2)

    def whole(self, part: Tensor, total: int) -> Tensor:
        return torch.cat([part, 10 * part])[:total]


def test_every_rank_is_shown_the_whole_batch() -> None:
    teacher = Watching(learns=False)
    waiting = Observations(teacher, TwoRanks(), at_once=True)
    ones = torch.ones(2)
    part = dt.Snapshot(ones[:, None], ones[:, None], ones.long(), ones, index=torch.tensor([3, 4]))
    waiting.add(part, 4)
    assert teacher.shown == [(0, [3, 4, 30, 40])]
    with pytest.raises(ConfigError, match="spread evenly"):
        waiting.add(part, 8)


@pytest.mark.parametrize("case", [MLP, NORM, DROP], ids=["mlp", "norm", "drop"])
def test_a_memory_stands_still_while_a_window_is_open(case: Any) -> None:
    """The meta-gradient through a window in which a sample occurs twice is unrolled autograd's."""
    run = bench(case, Setting(window=3, interval=4, warmup=0))
    run.teacher = dt.Teacher([dt.History(), dt.Loss()]).double()
    torch.manual_seed(5)
    last = run.teacher.score[-1]
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight)
    taught = run.coach(dt.Stored())
    for t in range(7):
        run.optimizer.zero_grad()
        x, y = run.batches[t % len(run.batches)]
        index = (torch.arange(len(y)) + 2 * t) % (len(y) + 3)
        taught.loss(x, y, index=index).backward()
        run.optimizer.step()
        if t == 3:
            taught.update(run.valid)
    before = everything(run, taught)
    found = taught.meta_gradient(*run.valid)
    wanted = taught.meta_gradient(*run.valid, adjoint=dt.Unrolled())
    assert off(found, wanted) < 1e-8 and same(before, everything(run, taught))
    assert float(flat(found)[1].abs().max()) > 0


def test_what_is_observed_does_not_pile_up_where_updates_are_not_asked_for() -> None:
    """A warm-up without teaching; the updates after it look back over what is left."""
    taught = coach(Watching(), interval=3, window=2)
    x, y = torch.randn(4, 3), torch.randint(2, (4,))
    waiting = []
    for _ in range(11):
        taught.optimizer.zero_grad()
        taught.loss(x, y, index=torch.arange(4)).backward()
        taught.optimizer.step()
        waiting.append(len(taught.recorder.observed.waiting))
    assert waiting == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]
    assert isinstance(taught.teacher, Watching) and len(taught.teacher.shown) == 9
    record = taught.update((x, y))
    assert record is not None and record.skipped is None and len(taught.teacher.shown) == 11
