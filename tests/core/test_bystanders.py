"""What passes read and no step trains, moved by the loop: the window begins anew, or one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from loops import VALID, Loop, Net, X, assert_exact, coached, differences, error, found
from torch import Tensor, nn

import deepteach as dt
from deepteach.errors import ConfigError, ReplayError

ADJOINTS = [dt.Stored, dt.Reversed, dt.Unrolled, dt.Checkpointed]


class Holding(Net):
    """Buffers and a target network, each of which is read or not."""

    centre: Tensor
    heat: Tensor
    bank: Tensor

    def __init__(self, *reads: str, evaluated: bool = False) -> None:
        super().__init__()
        self.reads, self.evaluated = reads, evaluated
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("heat", torch.ones(()))
        self.register_buffer("bank", torch.eye(4, 5))
        self.norm = nn.BatchNorm1d(5)
        self.target = copy.deepcopy(self.a).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        reads = () if self.evaluated and self.training else self.reads
        h = self.a(x)
        if "norm" in self.reads:
            h = self.norm(h)
        if "target" in reads:
            h = h + self.target(x)
        if "bank" in reads:
            h = h + (h @ self.bank.T).softmax(1) @ self.bank
        z = self.fc(h.tanh())
        z = z / self.heat if "heat" in reads else z
        return z - self.centre if "centre" in reads else z


class Beside(Loop):
    """Something moves after every step, or before it, or after the update."""

    reads: tuple[str, ...] = ()
    when = "after"
    evaluated = False
    scheduled: tuple[str, ...] = ()

    def make(self) -> Any:
        return Holding(*self.reads, evaluated=self.evaluated)

    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        return super().optimize([leaf for leaf in leaves if leaf.requires_grad])

    def student(self) -> dt.Student:
        return dt.Student(self.module, self.internal, scheduled=self.scheduled)

    @torch.no_grad()
    def move(self) -> None:
        raise NotImplementedError

    def between(self, i: int) -> None:
        if self.when == "before":
            self.move()

    def after(self, i: int) -> None:
        if self.when == "after" or (self.when == "updated" and i < self.steps - 1):
            self.move()


class Centre(Beside):
    """DINO's."""

    reads = ("centre",)

    def move(self) -> None:
        with torch.no_grad():
            self.module.centre.lerp_(self.module(X).mean(0) + self.module.centre, 0.3)


class CentreData(Centre):
    """No version counter tells of it."""

    def move(self) -> None:
        with torch.no_grad():
            seen = self.module(X).mean(0) + self.module.centre
        self.module.centre.data.lerp_(seen, 0.3)


class CentreReplaced(Centre):
    def move(self) -> None:
        with torch.no_grad():
            self.module.centre = self.module.centre * 0.7 + 0.3 * self.module(X).mean(0)


class Bank(Beside):
    """Rows of length 1: its norm stays."""

    reads = ("bank",)

    def move(self) -> None:
        with torch.no_grad():
            row = nn.functional.normalize(self.module.a(X[:1]))[0]
            self.module.bank.copy_(torch.cat([self.module.bank[1:], row[None]]))


class Statistics(Beside):
    """Running statistics, read in eval mode, that the loop brings nearer to the student's."""

    reads = ("norm",)

    def make(self) -> Any:
        module = super().make()
        module.norm.eval()
        return module

    def move(self) -> None:
        with torch.no_grad():
            self.module.norm.running_mean.lerp_(self.module.a(X).mean(0), 0.3)


class Target(Beside):
    """A target network within the module (BYOL, MoCo, mean teachers)."""

    reads = ("target",)
    decay = 0.9

    def move(self) -> None:
        with torch.no_grad():
            pairs = zip(self.module.target.parameters(), self.module.a.parameters(), strict=True)
            for slow, leaf in pairs:
                slow.lerp_(leaf, 1 - self.decay)


class TargetData(Target):
    def move(self) -> None:
        pairs = zip(self.module.target.parameters(), self.module.a.parameters(), strict=True)
        for slow, leaf in pairs:
            slow.data = slow.data * self.decay + leaf.data * (1 - self.decay)


class SlowTarget(Target):
    decay = 0.9999


class Heat(Beside):
    """A temperature that is annealed."""

    reads = ("heat",)

    def move(self) -> None:
        self.module.heat.mul_(0.8)


def at(kind: type[Beside], when: str, **more: Any) -> Any:
    return type(f"{kind.__name__}_{when}", (kind,), {"when": when, **more})


BUFFERS = [Centre, CentreData, CentreReplaced, Bank, Statistics]
ALL = [*BUFFERS, Target, TargetData, SlowTarget]


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("kind", ALL)
def test_moved_after_the_step_is_refused(kind: type[Beside], window: int) -> None:
    """Its new values depend on the weights that the teacher has moved."""
    got, want = None, differences(kind, window)
    with pytest.raises(ReplayError, match="passes read.*right after optimizer.step") as refused:
        got = found(kind, window, dt.Stored())
    assert got is None and "\n" not in str(refused.value) and want.norm() > 0


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("kind", ALL)
def test_moved_after_the_update_it_is_exact_over_one_step(
    kind: type[Beside], adjoint: type[dt.Stored]
) -> None:
    late = at(kind, "updated")
    want = differences(late, 1)
    assert error(found(late, 1, adjoint()), want) < 1e-6
    if adjoint is dt.Checkpointed:  # no state was kept before the last step
        with pytest.raises(ReplayError, match="passes read"):
            found(late, 3, adjoint())
        return
    with pytest.warns(dt.WindowWarning, match="passes read.*over 1 of 3 steps"):
        assert error(found(late, 3, adjoint()), want) < 1e-6


@pytest.mark.parametrize("kind", BUFFERS)
def test_a_buffer_moved_before_the_step_is_that_of_its_pass(kind: type[Beside]) -> None:
    early = at(kind, "before")
    want = differences(early, 1)
    assert error(found(early, 1, dt.Stored()), want) < 1e-6
    with pytest.warns(dt.WindowWarning, match="over 1 of 3 steps"):
        assert error(found(early, 3, dt.Stored()), want) < 1e-6


def test_a_parameter_moved_before_the_step_is_refused() -> None:
    """A replay has the parameters of now."""
    with pytest.raises(ReplayError, match="'target.weight'.*target network"):
        found(at(Target, "before"), 1, dt.Stored())


@pytest.mark.filterwarnings("ignore::deepteach.errors.WindowWarning")
@pytest.mark.parametrize("kind", [Centre, Target])
def test_where_every_update_comes_after_it_that_is_said(kind: type[Beside]) -> None:
    loop = coached(kind, 1, interval=2)
    with pytest.raises(ReplayError, match="right after optimizer.step"):
        for t in range(8):
            loop.step(t % 5, *loop.batch(t % 5))
            assert loop.coach.update(VALID) is None


@pytest.mark.parametrize("kind", [Centre, Bank, Target, TargetData])
def test_updates_before_it_teach(kind: type[Beside]) -> None:
    loop, taught = coached(at(kind, "never"), 1, interval=2), 0
    for t in range(8):
        loop.step(t % 5, *loop.batch(t % 5))
        taught += loop.coach.update(VALID) is not None
        loop.move()  # type: ignore[attr-defined]
    assert taught == 4


@pytest.mark.parametrize("when", ["after", "before", "updated"])
def test_a_schedule_that_is_named_is_exact(when: str) -> None:
    assert_exact(at(Heat, when, scheduled=("heat",)), (1, 2, 4))
    if when != "before":
        with pytest.raises(ReplayError, match=r"scheduled=\['heat'\]"):
            found(at(Heat, "after"), 2, dt.Stored())


def test_a_schedule_names_buffers() -> None:
    with pytest.raises(ConfigError, match=r"names 'warmth'.*centre, heat, bank"):
        coached(at(Heat, "after", scheduled=("warmth",)), 1)


@pytest.mark.parametrize("kind", ALL)
def test_what_nothing_reads_is_no_matter(kind: type[Beside]) -> None:
    if kind is not Statistics:
        assert_exact(at(kind, "after", reads=()), (1, 3))


@pytest.mark.parametrize("kind", [Centre, Target])
def test_what_the_trusted_batch_alone_reads(kind: type[Beside]) -> None:
    """It is seen in eval mode; so are steps in a file."""

    class Evaluated(kind):  # type: ignore[misc,valid-type]
        evaluated = True

        def answer(self, x: Tensor) -> Tensor:
            self.module.eval()
            return super().answer(x)

    for when, window in (("after", 1), ("updated", 2)):
        loop = coached(at(Evaluated, when), window)
        loop.run(window)
        loop.module.eval()
        with pytest.raises(ConfigError, match="trusted batch reads it.*window=1"):
            loop.coach.meta_gradient(*VALID)
        other = coached(at(Evaluated, when), window)
        other.module.load_state_dict(loop.module.state_dict())
        other.optimizer.load_state_dict(loop.optimizer.state_dict())
        other.coach.load_state_dict(loop.coach.state_dict())
        other.module.eval()
        with pytest.raises(ConfigError, match="trusted batch reads it"):
            other.coach.meta_gradient(*VALID)
    loop = coached(at(Evaluated, "updated"), 1)
    loop.run(1)
    loop.module.eval()
    got = loop.coach.meta_gradient(*VALID)["k"]
    assert error(got, differences(at(Evaluated, "updated"), 1)) < 1e-6


class Stale(Loop):
    """A layer is frozen, and goes on moving by the momentum that it has."""

    decay = 0.0

    def step(self, i: int, x: Any, y: Tensor) -> None:
        if i == 1:
            self.module.a.requires_grad_(False)
        self.optimizer.zero_grad(set_to_none=i < 1)
        self.coach.loss(x, y).backward()
        self.optimizer.step()


def test_a_frozen_layer_that_the_optimizer_moves_is_named() -> None:
    with pytest.raises(ReplayError, match=r"'a.weight'.*zero_grad\(set_to_none=True\)"):
        found(Stale, 2, dt.Stored())


class FollowsInside(Holding):
    """MoCo moves its keys' encoder within forward."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            pairs = zip(self.target.parameters(), self.a.parameters(), strict=True)
            for slow, leaf in pairs:
                slow.lerp_(leaf, 0.1)
        return super().forward(x)


def test_a_target_that_moves_within_a_pass_is_refused() -> None:
    class Inside(Target):
        when = "never"

        def make(self) -> Any:
            return FollowsInside("target")

    with pytest.raises(ConfigError, match="writes to its own parameter 'target.weight'.*loop"):
        found(Inside, 1, dt.Stored())


class InParts(Centre):
    """The centre moves between the parts of a step."""

    options = {"accumulate": True}
    when = "never"

    def step(self, i: int, x: Any, y: Tensor) -> None:
        self.optimizer.zero_grad()
        self.coach.loss(x, y).backward()
        self.move()
        self.coach.loss(x.flip(0), y.flip(0)).backward()
        self.optimizer.step()


def test_parts_of_a_step() -> None:
    got = found(InParts, 1, dt.Stored())
    with pytest.warns(dt.WindowWarning, match="over 1 of 3 steps"):
        assert torch.equal(found(InParts, 3, dt.Stored()), got)


class TargetInParts(InParts):
    reads = ("target",)
    move = Target.move  # type: ignore[assignment]
    decay = 0.9


def test_a_target_between_the_parts_of_a_step() -> None:
    with pytest.raises(ReplayError, match="'target.weight'"):
        found(TargetInParts, 1, dt.Stored())


@pytest.mark.parametrize("kind", [Centre, Target])
def test_a_copied_coach_knows_what_was_moved(kind: type[Beside]) -> None:
    loop = coached(at(kind, "never"), 2)
    loop.run(2)
    loop.move()  # type: ignore[attr-defined]
    with pytest.raises(ReplayError, match="passes read|no step was recorded"):
        copy.deepcopy(loop).coach.meta_gradient(*VALID)


@pytest.mark.parametrize("kind", [Centre, Target])
def test_values_that_were_put_back_are_no_matter(kind: type[Beside]) -> None:
    class PutBack(kind):  # type: ignore[misc,valid-type]
        def move(self) -> None:
            kept = copy.deepcopy(self.module.state_dict())
            super().move()
            self.module(X)
            self.module.load_state_dict(kept)

    assert_exact(PutBack, (1, 3))


class Drifting(Loop):
    """A number that is no tensor changes a little after every step."""

    def make(self) -> Any:
        class Scaled(Net):
            scale = 1.0

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * self.scale

        return Scaled()

    def after(self, i: int) -> None:
        self.module.scale *= 1 + 1e-4


@pytest.mark.parametrize("adjoint", [dt.Stored, dt.Reversed])
def test_float64_repeats_its_losses(adjoint: type[dt.Stored]) -> None:
    """What float32 could not tell from rounding is told."""
    with pytest.raises(ReplayError, match="other losses|another gradient"):
        found(Drifting, 1, adjoint())
