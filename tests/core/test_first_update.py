"""No step of a teacher is made of rounding: before its features are fitted, or at any time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CLASSES
from coach_loop import flat, same
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.update import ROUNDING, UNFITTED


class Loop:
    def __init__(self, teacher: dt.AbstractTeacher, **options: Any) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, CLASSES))
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1, momentum=0.9)
        settings = {"interval": 3, "window": 2, **options}
        self.coach = dt.Coach(dt.Student(self.module, "2"), self.optimizer, teacher, **settings)
        self.teacher = teacher
        self.generator = torch.Generator().manual_seed(1)
        self.valid = self.batch(30)

    def batch(self, size: int = 64) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, 3, generator=self.generator)
        return x, torch.randint(CLASSES, (size,), generator=self.generator)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.coach.loss(*self.batch()).backward()
        self.optimizer.step()

    def updated(self) -> dt.UpdateRecord:
        """The record of the next update."""
        while True:
            self.step()
            found = self.coach.update(self.valid)
            if found is not None:
                return found

    def learned(self) -> list[Any]:
        return flat(dict(self.teacher.named_parameters()))


def probing() -> dt.Teacher:
    torch.manual_seed(3)
    return dt.Teacher([dt.TrustedProbe()])


def fitted(teacher: dt.Teacher) -> bool:
    return teacher.get_buffer("features.0.slope").numel() > 0


def test_the_first_update_fits_and_does_not_step() -> None:
    loop = Loop(probing())
    before = loop.learned()
    record = loop.updated()
    assert record.skipped == UNFITTED and record.gradient_norm == 0
    assert record.validation_accuracy is not None and record.step == 3
    assert same(loop.learned(), before) and not fitted(probing())
    assert fitted(loop.teacher)  # type: ignore[arg-type]
    assert loop.updated().skipped is None
    assert not same(loop.learned(), before)


def test_named_trusted_data_is_read_before_the_first_window() -> None:
    loop = Loop(probing())
    before = loop.learned()
    loop.coach.trust(loop.valid)
    buffers = flat(dict(loop.module.named_buffers()))
    loop.step()
    assert fitted(loop.teacher)  # type: ignore[arg-type]
    assert same(flat(dict(loop.module.named_buffers())), buffers)
    record = loop.updated()
    assert record.step == 3 and record.skipped is None and record.gradient_norm > 0
    assert not same(loop.learned(), before)


def test_trusted_data_named_in_a_window_changes_no_recorded_weight() -> None:
    loop = Loop(probing())
    loop.step()
    loop.coach.trust(loop.valid)
    assert loop.updated().skipped == UNFITTED


def test_a_teacher_that_reads_nothing_trusted_steps_at_once() -> None:
    loop = Loop(dt.Teacher([dt.Loss()]))
    before = loop.learned()
    assert loop.updated().skipped is None
    assert not same(loop.learned(), before)


class Seeing(dt.Feature):
    """A feature of one's own that does not say that it is fitted."""

    width = 1

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return snapshot.losses.unsqueeze(1)

    def fit(self, trusted: dt.Snapshot) -> None:
        self.seen += 1


class SeeingTeacher(dt.AbstractTeacher):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))
        self.seen = 0

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.slope * snapshot.losses

    def fit(self, trusted: dt.Snapshot) -> None:
        self.seen += 1


def test_whatever_has_a_fit_of_its_own_is_fitted() -> None:
    feature, teacher = Seeing(), SeeingTeacher()
    for one, made in ((feature, dt.Teacher([feature])), (teacher, teacher)):
        loop = Loop(made)
        loop.coach.trust(loop.valid)
        loop.updated()
        assert one.seen == 2 and made.reads_trusted  # before the first window, after the update


@pytest.mark.parametrize("named", [False, True])
def test_a_resumed_run_knows_whether_it_was_fitted(named: bool) -> None:
    loop, other = Loop(probing()), Loop(probing())
    if named:
        loop.coach.trust(loop.valid)
    loop.step()
    other.module.load_state_dict(loop.module.state_dict())
    other.coach.load_state_dict(loop.coach.state_dict())
    assert other.coach.state_dict()["fitted"] is named


class Constant(dt.Feature):
    """The same of every sample, so that it says nothing of how to weigh them."""

    width = 2

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return torch.full((len(snapshot.losses), 2), 0.7)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Lookahead])
def test_rounding_alone_does_not_move_a_teacher(adjoint: type[dt.AbstractAdjoint]) -> None:
    """Its gradient is 0 but for rounding, of which Adam would make a whole step."""
    torch.manual_seed(3)
    options = {"window": 1} if adjoint is dt.Lookahead else {}
    loop = Loop(dt.Teacher([Constant()], hidden_layers=1), adjoint=adjoint(), **options)
    loop.coach.trust(loop.valid)
    before = loop.learned()
    for _ in range(4):
        for _ in range(3):
            loop.step()
            loop.coach.update(loop.valid)
        assert loop.coach.last_record is not None
        assert loop.coach.last_record.skipped == ROUNDING
    assert same(loop.learned(), before)


class Shifted(dt.AbstractTeacher):
    """log w = a l + b; b weighs all samples alike, and so does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.a * snapshot.losses + self.b


def test_an_entry_that_is_rounding_rests_while_the_others_learn() -> None:
    loop = Loop(teacher := Shifted())
    for _ in range(5):
        assert loop.updated().skipped is None
    assert teacher.b.item() == 0 and abs(teacher.a.item()) > 1e-3


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_a_small_gradient_is_not_rounding(scale: float) -> None:
    """It is compared with its own terms, not with a number."""
    loss = nn.functional.cross_entropy
    loop = Loop(dt.Teacher([dt.Loss()]), validation_loss=lambda z, y: scale * loss(z, y))
    record = loop.updated()
    assert record.skipped is None and 0 < record.gradient_norm < 1e12
