"""Undone steps that rounding loses: named, and with the default adjoint made up for."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import pytest
import torch
from coach_loop import flat, same
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.adjoint import reversed as undoing
from deepteach.tree import distance

WINDOW = 12


class Jittery(nn.Module):
    """Rounds differently each time, as kernels may whose threads add in any order.

    `size` is for float32, and less in higher precision.
    """

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size, self.draws = size, random.Random(1)

    def forward(self, x: Tensor) -> Tensor:
        size = self.size * torch.finfo(x.dtype).eps / torch.finfo(torch.float32).eps
        return x * (1 + size * self.draws.uniform(-1.0, 1.0))


class Loop:
    """Inputs so large, and a rate so high, that each undone step triples the rounding."""

    def __init__(
        self, adjoint: dt.AbstractAdjoint | None = None, jitter: float = 0.0, rate: float = 1.0
    ) -> None:
        torch.manual_seed(0)
        extra = [Jittery(jitter)] if jitter else []
        self.module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *extra, nn.Linear(4, 3))
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=rate, momentum=0.9)
        self.teacher = dt.Teacher([dt.Internal(4), dt.Label(3, 2)])
        student = dt.Student(self.module, str(len(self.module) - 1))
        options: dict[str, Any] = {"interval": WINDOW, "window": WINDOW, "adjoint": adjoint}
        self.coach = dt.Coach(student, self.optimizer, self.teacher, **options)
        self.generator = torch.Generator().manual_seed(1)
        self.valid = self.batch(16)

    def batch(self, size: int = 6) -> tuple[Tensor, Tensor]:
        x = 10 * torch.randn(size, 3, generator=self.generator)
        return x, torch.randint(3, (size,), generator=self.generator)

    def steps(self, count: int = WINDOW) -> list[tuple[Tensor, Tensor]]:
        batches = [self.batch() for _ in range(count)]
        for x, y in batches:
            self.optimizer.zero_grad()
            self.coach.loss(x, y).backward()
            self.optimizer.step()
        return batches

    def update(self) -> dt.UpdateRecord:
        found = self.coach.update(self.valid)
        assert found is not None
        return found

    def state(self) -> list[Any]:
        return flat(
            [self.module.state_dict(), self.optimizer.state_dict(), self.coach.state_dict()]
        )


def test_the_cause_and_the_remedy_are_named() -> None:
    loop = Loop(dt.Reversed())
    loop.steps()
    with pytest.raises(dt.ReplayError, match=r"rounding in torch.float32 grew .*Checkpointed\(\)"):
        loop.update()


@pytest.mark.parametrize("bytes_", [undoing.COPIES, 0])
def test_the_update_is_exact_all_the_same(bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so are the following ones, whose states are kept: all of them, or every fourth."""
    monkeypatch.setattr(undoing, "COPIES", bytes_)
    loop, stored = Loop(), Loop(dt.Stored())
    for turn in range(3):
        loop.steps()
        stored.steps()
        kept = [step.state for step in loop.coach.recorder.steps if step.state is not None]
        assert len(kept) == (2 if turn == 0 else WINDOW if bytes_ else WINDOW // 4)
        exact = stored.coach.meta_gradient(*stored.valid)
        assert distance(loop.coach.meta_gradient(*loop.valid), exact) < 1e-6
        if turn == 0:
            with pytest.warns(dt.ReversalWarning, match="running forward instead"):
                record = loop.update()
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error", dt.ReversalWarning)
                record = loop.update()
        stored.update()
        assert record.skipped is None
        assert distance(loop.coach.omega, stored.coach.omega) < 1e-5


def test_a_meta_gradient_decides_nothing() -> None:
    loop = Loop()
    loop.steps()
    before = loop.state()
    loop.coach.meta_gradient(*loop.valid)
    assert same(loop.state(), before)
    assert isinstance(loop.coach.adjoint, dt.Reversed) and not loop.coach.adjoint.keeping


@pytest.mark.filterwarnings("ignore::deepteach.errors.ReversalWarning")
@pytest.mark.parametrize("cut", [5, WINDOW, WINDOW + 5])
def test_a_resumed_run_decides_the_same(cut: int) -> None:
    def go(loop: Loop, start: int, end: int) -> None:
        for step in range(start, end):
            loop.steps(1)
            if (step + 1) % WINDOW == 0:
                loop.update()

    loop, other = Loop(), Loop()
    go(loop, 0, cut)
    saved = copy.deepcopy([part.state_dict() for part in (loop.module, loop.optimizer, loop.coach)])
    for part, state in zip((other.module, other.optimizer, other.coach), saved, strict=True):
        part.load_state_dict(state)
    other.generator.set_state(loop.generator.get_state())
    for one in (loop, other):
        go(one, cut, 2 * WINDOW + 1)
    assert same(other.state(), loop.state())
    assert loop.coach.state_dict()["adjoint"] == {"keeping": True}


def test_steps_that_do_not_repeat_are_not_taken_for_rounding() -> None:
    loop = Loop(jitter=0.1)
    loop.steps()
    with pytest.raises(dt.ReplayError, match="not deterministic"):
        loop.update()


@pytest.mark.parametrize("changed", [3, WINDOW - 1])
def test_inputs_changed_in_place_are_not_taken_for_rounding(changed: int) -> None:
    loop = Loop()
    loop.steps()[changed][0].mul_(-1)
    with pytest.raises(dt.ReplayError, match="changed in place after coach.loss"):
        loop.update()


def test_a_student_that_was_moved_is_not_taken_for_rounding() -> None:
    loop = Loop()
    for _ in range(WINDOW):
        loop.steps(1)
        with torch.no_grad():
            for leaf in loop.module.parameters():
                leaf.mul_(0.9)
    with pytest.raises(dt.ReplayError, match="something besides"):
        loop.coach.meta_gradient(*loop.valid)


def test_an_update_that_cannot_be_had_is_skipped_once() -> None:
    """Rounding that differs from pass to pass grows forwards as it does backwards."""
    loop = Loop(jitter=1e-5, rate=3.0)
    loop.steps()
    with pytest.raises(dt.ReplayError, match="rounding"):
        loop.coach.meta_gradient(*loop.valid)
    before = flat(loop.teacher.state_dict())
    with pytest.warns(dt.ReversalWarning, match="update was skipped"):
        record = loop.update()
    assert record.skipped is not None and "rounding" in record.skipped
    assert same(flat(loop.teacher.state_dict()), before)
    loop.steps()
    assert loop.update().skipped is None
    assert not same(flat(loop.teacher.state_dict()), before)


def test_short_windows_keep_no_more_than_before() -> None:
    """Over two steps no recovered state is undone any further."""
    loop = Loop()
    loop.coach.window = 2
    loop.coach.interval = 2
    loop.steps(2)
    slots = [step.state.slots for step in loop.coach.recorder.steps if step.state is not None]
    assert slots == [{}, {}]
