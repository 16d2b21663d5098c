"""A coached run: schedulers step anywhere, twice is the same, and so is one that resumed."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections import UserDict, namedtuple
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from cases import CASE, CLASSES, TOLERANCE, Bench, Setting, bench
from coach_loop import DROP, EVERY_STEP, MLP, NORM, everything, same, step, valid_loader
from oracles import off, record, unrolled
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.optim import Hyper, MomentumSGD, State
from deepteach.errors import WindowWarning
from deepteach.tree import Params


@pytest.mark.parametrize("place", ["before loss", "before step", "after step", "after update"])
def test_schedulers_may_step_anywhere(place: str) -> None:
    """The rate that counts is the one in force when the optimizer stepped."""
    run = bench(NORM, Setting(window=4))
    coach = run.coach()
    wanted = record(run, coach)
    run = bench(NORM, run.setting)
    coach = run.coach()
    index = {"before loss": 0, "before step": 0, "after step": 1, "after update": 1}[place]
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        run.optimizer, lambda t: 1.0 if t == 0 and not index else run.setting.rate(t - 1 + index)
    )
    torch.manual_seed(11)
    for t, (x, y) in enumerate(run.batches):
        run.optimizer.zero_grad()
        if place == "before loss":
            advance(scheduler)
        if t < run.setting.warmup:
            nn.functional.cross_entropy(run.module(x), y).backward()
        else:
            coach.loss(x, y).backward()
        if place == "before step":
            advance(scheduler)
        run.optimizer.step()
        if place == "after step":
            advance(scheduler)
        if t < run.setting.steps - 1:
            assert coach.update(run.valid) is None
        if place == "after update":
            advance(scheduler)
    assert off(coach.meta_gradient(*run.valid), unrolled(wanted)) < TOLERANCE["adjoints"]


def advance(scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
    """`scheduler.step()` without torch's warning about its order, which is the point here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.step()


def journey(run: Bench, coach: dt.Coach, steps: range) -> list[Any]:
    """Taught steps with updates from a shuffling loader; all that they leave behind."""
    loader = valid_loader(run)
    records = []
    for t in steps:
        for group in run.optimizer.param_groups:
            group["lr"] = 0.3 * 0.95**t
        step(run, coach, t)
        records.append(coach.update(loader))
    return [*everything(run, coach), records[-3:]]


def probing(case: Any) -> dt.AbstractTeacher:
    features = [dt.Internal(case.width), dt.Label(CLASSES, 2), dt.Surface(), dt.TrustedProbe()]
    return dt.Teacher(features)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled, dt.Lookahead])
def test_same_run_twice_is_bit_equal(adjoint: type[dt.AbstractAdjoint]) -> None:
    def once() -> list[Any]:
        run = bench(DROP, Setting(window=3, interval=4), teacher=probing)
        torch.manual_seed(8)
        return journey(run, run.coach(adjoint()), range(10))

    assert same(once(), once())


def plain(value: Any) -> Any:
    """A deep copy that knows tensors and Python's own containers, and nothing else."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    assert value is None or type(value) in (bool, int, float, str), type(value)
    return value


@pytest.mark.parametrize("name", ["dropout", "batchnorm", "tuple", "dict", "lstm"])
@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled, dt.Lookahead])
@pytest.mark.parametrize("cut", [0, 6, 8])
def test_resume_is_bit_exact(cut: int, adjoint: type[dt.AbstractAdjoint], name: str) -> None:
    """Cut at the start, in mid-window, and right after an update.

    The lookahead teaches inside `coach.loss`, so it is shown the trusted data first.
    """
    setting = Setting(window=3, interval=4)
    whole = bench(CASE[name], setting, teacher=probing)
    if name in ("tuple", "dict"):
        whole.valid = (whole.batches[0][0], whole.batches[0][1])
    torch.manual_seed(8)
    coach = whole.coach(adjoint())
    travel(whole, coach, range(cut))
    saved = plain([whole.module.state_dict(), whole.optimizer.state_dict(), coach.state_dict()])
    generator = torch.get_rng_state()
    want = travel(whole, coach, range(cut, 13))

    other = bench(CASE[name], setting, teacher=probing)
    other.valid = whole.valid
    other.module.load_state_dict(saved[0])
    other.optimizer.load_state_dict(saved[1])
    resumed = other.coach(adjoint())
    resumed.load_state_dict(saved[2])
    if resumed.adjoint.before_step and cut:
        resumed.update(other.valid if name in ("tuple", "dict") else valid_loader(other))
    torch.set_rng_state(generator)
    assert same(travel(other, resumed, range(cut, 13)), want)


def travel(run: Bench, coach: dt.Coach, steps: range) -> list[Any]:
    """`journey`, over one trusted batch where it is no tensor."""
    if isinstance(run.valid[0], Tensor):
        return journey(run, coach, steps)
    for t in steps:
        step(run, coach, t)
        coach.update(run.valid)
    return everything(run, coach)


@pytest.mark.parametrize("save", [dt.Coach.state_dict, copy.deepcopy, pickle.dumps])
def test_nothing_is_saved_while_gradients_wait_for_a_step(save: Any) -> None:
    run = bench(MLP, EVERY_STEP)
    coach = run.coach()
    coach.loss(*run.batches[0]).backward()
    with pytest.raises(dt.ConfigError, match="gradients of coach.loss wait.*coach.discard"):
        save(coach)
    coach.discard()
    save(coach)


@pytest.mark.parametrize("case", ["batchnorm", "dropout"])
@pytest.mark.parametrize("cleared", [False, True])
def test_a_loss_that_was_dropped_does_not_keep_the_state_from_being_saved(
    case: str, cleared: bool
) -> None:
    """An interrupt between the loss and the step: training goes on from the file as it would."""
    setting = Setting(window=3, interval=4)
    run = bench(CASE[case], setting, teacher=probing)
    torch.manual_seed(8)
    coach = run.coach()
    journey(run, coach, range(6))
    run.optimizer.zero_grad()
    loss = coach.loss(*run.batches[0])
    if cleared:
        loss.backward()
        run.optimizer.zero_grad()
    parts = [run.module.state_dict(), run.optimizer.state_dict(), coach.state_dict()]
    saved, generator = plain(parts), torch.get_rng_state()
    want = journey(run, coach, range(6, 13))
    other = bench(CASE[case], setting, teacher=probing)
    other.module.load_state_dict(saved[0])
    other.optimizer.load_state_dict(saved[1])
    resumed = other.coach()
    resumed.load_state_dict(saved[2])
    torch.set_rng_state(generator)
    assert same(journey(other, resumed, range(6, 13)), want)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored])
@pytest.mark.parametrize("cut", [6, 7])
def test_a_process_that_goes_back_to_a_checkpoint_does_what_a_new_one_does(
    cut: int, adjoint: type[dt.AbstractAdjoint]
) -> None:
    """Without a warning that the student was moved: it was, and its steps with it."""
    run = bench(CASE["batchnorm"], Setting(window=3, interval=4), teacher=probing)
    torch.manual_seed(8)
    coach = run.coach(adjoint())
    journey(run, coach, range(cut))
    parts = [run.module.state_dict(), run.optimizer.state_dict(), coach.state_dict()]
    saved, generator = plain(parts), torch.get_rng_state()
    want = journey(run, coach, range(cut, 13))
    run.module.load_state_dict(saved[0])
    run.optimizer.load_state_dict(saved[1])
    coach.load_state_dict(saved[2])
    torch.set_rng_state(generator)
    assert same(journey(run, coach, range(cut, 13)), want)


def through_pickle(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))  # noqa: S301 (its own bytes)


class Holder(nn.Module):
    """A module that keeps its coach, as Lightning's do with `Teach`."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own
        self.coach: Any = None

    def forward(self, *x: Any) -> Any:
        return self.own(*x)


def held(setting: Setting, case: Any, *, whole: bool) -> tuple[Bench, Holder]:
    """A run whose module holds its coach: as the student, or as what the student is a layer of."""
    run = bench(case, setting)
    own = Holder(run.module)
    layer = f"own.{case.internal}" if whole else case.internal
    student = dt.Student(own if whole else run.module, layer, pool=case.pool)
    pace: dict[str, Any] = {"interval": setting.interval, "window": setting.window}
    own.coach = dt.Coach(student, run.optimizer, run.teacher, **pace)
    return run, own


def of(own: Holder, run: Bench) -> Bench:
    """The run of a copy."""
    coach = own.coach
    return replace(run, module=own.own, optimizer=coach.optimizer, teacher=coach.teacher)


@pytest.mark.parametrize("whole", [False, True], ids=["a layer", "the student"])
@pytest.mark.parametrize("cut", [6, 7])
@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_a_module_that_holds_its_coach_is_copied_with_it(
    copied: Any, cut: int, whole: bool
) -> None:
    run, own = held(Setting(window=3, interval=4), CASE["batchnorm"], whole=whole)
    journey(run, own.coach, range(cut))
    other = copied(own)
    assert other.coach is not own.coach and other.own is not own.own
    found = journey(of(other, run), other.coach, range(cut, 13))
    assert same(found, journey(run, own.coach, range(cut, 13)))


def test_a_copy_with_its_module_notices_a_step_that_was_not_taught() -> None:
    run, own = held(Setting(window=3, interval=4), MLP, whole=True)
    for t in range(3):
        step(run, own.coach, t)
    other = copy.deepcopy(own)
    again = of(other, run)
    nn.functional.cross_entropy(other.own(run.batches[3][0]), run.batches[3][1]).backward()
    other.coach.optimizer.step()
    step(again, other.coach, 3)
    with pytest.warns(WindowWarning, match="goes back over 1 of 3"):
        other.coach.update(run.valid)


Pair = namedtuple("Pair", "x mask")


@pytest.mark.parametrize("kind", ["mapping", "namedtuple"])
def test_a_state_holds_plain_containers_whatever_the_batches_are_made_of(kind: str) -> None:
    run = bench(CASE["dict" if kind == "mapping" else "tuple"], Setting(window=3, interval=4))
    coach = run.coach()
    x, y = run.batches[0]
    given: Any = UserDict(x) if kind == "mapping" else Pair(*x)
    coach.loss(given, y).backward()
    run.optimizer.step()
    file = io.BytesIO()
    torch.save(coach.state_dict(), file)
    file.seek(0)
    coach.load_state_dict(torch.load(file, weights_only=True))
    step(run, coach, 1)
    coach.meta_gradient(*run.batches[0])


@dataclass(frozen=True)
class OwnHyper(Hyper):
    """A setting that no other optimizer has."""

    bias: float = 0.0


class OwnRule(MomentumSGD):
    """Momentum SGD with a constant added to each gradient."""

    def hyper(self, group: dict, held: dict) -> OwnHyper:
        return OwnHyper(**vars(super().hyper(group, held)), bias=0.0)

    def step(self, state: State, gradient: Params, hyper: dict[str, Any]) -> State:
        moved = {name: g + hyper[name].bias for name, g in gradient.items() if name in hyper}
        return super().step(state, {**gradient, **moved}, hyper)


def test_a_rule_of_ones_own_resumes() -> None:
    """Its settings come back as the class that they were."""
    run = bench(CASE["mlp"], Setting(window=3))
    coach = run.coach(dt.Stored(), rule=OwnRule())
    run.train(coach)
    again = bench(CASE["mlp"], Setting(window=3))
    other = again.coach(dt.Stored(), rule=OwnRule())
    again.module.load_state_dict(run.module.state_dict())
    again.optimizer.load_state_dict(run.optimizer.state_dict())
    other.load_state_dict(coach.state_dict())
    assert all(type(h) is OwnHyper for s in other.recorder.steps for h in s.hyper.values())
    want = coach.meta_gradient(*run.valid)
    found = other.meta_gradient(*run.valid)
    assert all(torch.equal(found[name], want[name]) for name in want)
