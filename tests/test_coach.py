"""The coach's contract: what it computes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy
import gc
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASE, CLASSES, TOLERANCE, Bench, Setting, bench
from oracles import off, record, unrolled
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import deepteach as dt

NORM, DROP, MLP = CASE["batchnorm"], CASE["dropout"], CASE["mlp"]
EVERY_STEP = Setting(window=1, interval=1, warmup=0)


def step(run: Bench, coach: dt.Coach, t: int) -> None:
    """One iteration of the user's loop."""
    run.optimizer.zero_grad()
    coach.loss(*run.batches[t % len(run.batches)]).backward()
    run.optimizer.step()


def flat(value: Any) -> list[Any]:
    """The leaves of a tree of dicts, lists and tuples; tensors are copied."""
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    if isinstance(value, dict):
        return [leaf for key in value for leaf in [key, *flat(value[key])]]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def everything(run: Bench, coach: dt.Coach) -> list[Any]:
    """All that a meta-gradient could disturb."""
    grads = [leaf.grad for leaf in (*run.module.parameters(), *run.teacher.parameters())]
    modes = [layer.training for layer in run.module.modules()]
    trees = [run.module.state_dict(), run.optimizer.state_dict(), coach.state_dict(), grads, modes]
    return flat([*trees, torch.get_rng_state(), random.getstate()])


def same(left: list[Any], right: list[Any]) -> bool:
    """Bit for bit (NaN equals NaN)."""

    def one(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return isinstance(b, Tensor) and torch.equal(a.nan_to_num(), b.nan_to_num())
        return a is b if a is None or b is None else a == b

    return len(left) == len(right) and all(map(one, left, right))


# What it computes


@pytest.mark.parametrize("train", [True, False])
def test_loss_is_the_weighted_mean_by_hand(train: bool) -> None:
    run = bench(NORM, replace(EVERY_STEP, train=train))
    coach, (x, y) = run.coach(), run.batches[0]
    w = coach.weights(x, y)
    twin = copy.deepcopy(run.module)
    losses = nn.functional.cross_entropy(twin(x), y, reduction="none")
    want = (w * losses).sum() / w.sum()
    value = coach.loss(x, y)
    assert value.dim() == 0 and float((value - want).detach().abs()) < 1e-14
    value.backward()
    want.backward()
    for ours, theirs in zip(run.module.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14)
    for ours, theirs in zip(run.module.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_loss_without_gradients_is_the_same_and_remembers_nothing() -> None:
    run = bench(MLP, EVERY_STEP)
    coach = run.coach()
    with torch.no_grad():
        values = [coach.loss(*run.batches[0]) for _ in range(3)]
    assert coach.steps == 0 and not coach._steps
    assert torch.equal(values[0], coach.loss(*run.batches[0]).detach())


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ["batchnorm", "dropout", "encoder", "dict"])
def test_weights_sum_to_the_batch_size_and_change_nothing(name: str, train: bool) -> None:
    run = bench(CASE[name], replace(EVERY_STEP, train=train))
    coach, (x, y) = run.coach(), run.batches[0]
    before = everything(run, coach)
    w = coach.weights(x, y)
    assert same(everything(run, coach), before)
    assert w.shape == y.shape and not w.requires_grad and bool((w >= 0).all())
    assert float(w.sum()) == pytest.approx(len(y), rel=1e-12)
    assert torch.allclose(w, len(y) * coach.log_weights(x, y).softmax(0))


@pytest.mark.parametrize("through", [False, True])
def test_gradient_reaches_the_student_through_the_weights_only_if_asked(through: bool) -> None:
    run = bench(MLP, replace(EVERY_STEP, through_weights=through))
    coach, (x, y) = run.coach(), run.batches[0]
    losses = nn.functional.cross_entropy(run.module(x), y, reduction="none")
    stopped = (coach.weights(x, y) / len(y)) @ losses
    leaves = list(run.module.parameters())
    want = torch.autograd.grad(stopped, leaves)
    coach.loss(x, y).backward()
    gaps = [float((p.grad - g).norm()) for p, g in zip(leaves, want, strict=True)]  # pyright: ignore
    assert (max(gaps) > 1e-4) is through


# What it leaves alone


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled])
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("name", ["batchnorm", "dropout", "running", "lstm"])
def test_meta_gradient_changes_nothing(
    name: str, through: bool, adjoint: type[dt.AbstractAdjoint]
) -> None:
    run = bench(CASE[name], Setting(window=3, through_weights=through))
    coach = run.coach(adjoint())
    run.train(coach)
    before = everything(run, coach)
    first = coach.meta_gradient(*run.valid)
    assert same(everything(run, coach), before)
    assert same(flat(coach.meta_gradient(*run.valid)), flat(first))
    assert list(first) == [name for name, _ in run.teacher.named_parameters()]


def test_update_moves_the_teacher_only() -> None:
    run = bench(NORM, Setting(window=3))
    coach = run.coach()
    run.train(coach)
    teacher = flat(run.teacher.state_dict())
    student = flat([run.module.state_dict(), run.optimizer.state_dict(), torch.get_rng_state()])
    assert coach.update(run.valid) is not None
    after = flat([run.module.state_dict(), run.optimizer.state_dict(), torch.get_rng_state()])
    assert same(after, student) and not same(flat(run.teacher.state_dict()), teacher)


@pytest.mark.parametrize("interval, window", [(1, 1), (3, 2), (4, 4)])
def test_update_acts_at_every_interval(interval: int, window: int) -> None:
    run = bench(MLP, Setting(window, interval, warmup=0))
    coach, acted = run.coach(), []
    for t in range(12):
        step(run, coach, t)
        gradient = coach.meta_gradient(*run.valid)
        found = coach.update(run.valid)
        if found is not None:
            acted.append(t + 1)
            assert found is coach.last_record and found.step == coach.steps == t + 1
            norm = sum(float(leaf.square().sum()) for leaf in gradient.values()) ** 0.5
            assert found.gradient_norm == pytest.approx(norm, rel=1e-12)
            assert found.drift is not None and found.drift < 1e-12
            assert 0 < found.effective_sample_size <= 1
    assert acted == list(range(interval, 13, interval))


def test_teacher_descends_the_meta_gradient() -> None:
    run = bench(MLP, EVERY_STEP)
    optimizer = torch.optim.SGD(run.teacher.parameters(), lr=0.5)
    coach = run.coach(teacher_optimizer=optimizer)
    step(run, coach, 0)
    gradient, before = coach.meta_gradient(*run.valid), copy.deepcopy(coach.omega)
    coach.update(run.valid)
    for name, leaf in coach.omega.items():
        assert torch.allclose(leaf, before[name] - 0.5 * gradient[name], rtol=1e-12, atol=1e-15)


def valid_loader(run: Bench) -> DataLoader:
    return DataLoader(TensorDataset(*run.valid), batch_size=5, shuffle=True)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Lookahead])
def test_users_random_numbers_are_the_same_without_updates(
    adjoint: type[dt.AbstractAdjoint],
) -> None:
    def numbers(taught: bool) -> list[Any]:
        run = bench(DROP, replace(EVERY_STEP, sizes=(5,)))
        coach, found = run.coach(adjoint()), []
        torch.manual_seed(4)
        for t in range(6):
            step(run, coach, t)
            if taught:
                coach.update(valid_loader(run))
            found.append(torch.rand(3))
        return flat(found)

    assert same(numbers(True), numbers(False))


def test_collected_coach_leaves_no_hooks() -> None:
    run = bench(MLP, Setting())
    coach = run.coach()
    run.train(coach)
    coach.update(run.valid)
    del coach
    gc.collect()
    assert not run.optimizer._optimizer_step_pre_hooks
    assert not run.optimizer._optimizer_step_post_hooks
    leaves = run.module.parameters()
    assert not any(getattr(leaf, "_post_accumulate_grad_hooks", None) for leaf in leaves)


# Schedules, repetition, resume


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


def test_state_is_saved_between_steps_only() -> None:
    run = bench(MLP, EVERY_STEP)
    coach = run.coach()
    coach.loss(*run.batches[0])
    with pytest.raises(dt.ConfigError, match="between optimizer.step"):
        coach.state_dict()


# Teachers that change nothing


class Constant(dt.AbstractTeacher):
    """Every sample the same log weight, through a parameter that cannot matter."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor(-3.0))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.z.expand(len(snapshot.labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("teacher", [Constant, dt.Uniform])
def test_equal_weights_are_plain_training(teacher: Callable, dtype: torch.dtype) -> None:
    runs = [bench(NORM, Setting(interval=20), dtype) for _ in range(2)]
    coach = runs[0].coach(teacher=teacher().to(dtype))
    runs[0].train(coach)
    runs[1].setting = replace(runs[1].setting, warmup=22, interval=0)
    runs[1].train(coach)  # nothing but warm-up, so the coach is not called
    slack = 1e-6 if dtype == torch.float32 else 1e-14
    for ours, theirs in zip(runs[0].module.parameters(), runs[1].module.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=slack, atol=slack)


def test_teacher_without_parameters_costs_no_validation_pass() -> None:
    run = bench(MLP, EVERY_STEP)
    coach = run.coach(teacher=dt.Uniform())
    step(run, coach, 0)
    bad = (run.valid[0] * torch.nan, run.valid[1])
    assert coach.update(bad) is None and coach.meta_gradient(*run.valid) == {}


# What it refuses when it is made


def made(run: Bench | None = None, **options: Any) -> dt.Coach:
    return (run or bench(MLP, Setting())).coach(**options)


def with_options(case_dtype: torch.dtype = torch.float64, **options: Any) -> Bench:
    """The plain student with another optimizer."""
    run = bench(MLP, Setting(), case_dtype)
    kind = options.pop("kind", torch.optim.SGD)
    extra = options.pop("extra", [])
    momentum = {} if kind is not torch.optim.SGD else {"momentum": 0.9}
    leaves = [*run.module.parameters(), *extra]
    run.optimizer = kind(leaves, **{"lr": 0.1, **momentum, **options})
    return run


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "nesterov reversed": (
        lambda: made(with_options(nesterov=True)),
        r"Nesterov.*adjoint=Stored\(\)",
    ),
    "no momentum reversed": (
        lambda: made(with_options(momentum=0.0)),
        r"momentum 0.*adjoint=Stored\(\)",
    ),
    "dampening": (lambda: made(with_options(dampening=0.1)), "dampening=0"),
    "maximize": (lambda: made(with_options(maximize=True)), "negate the loss"),
    "window above interval": (lambda: made(window=7, interval=6), "lower the window or raise"),
    "no window": (lambda: made(window=0), "between 1 and interval"),
    "window too long for float32": (
        lambda: made(with_options(torch.float32), window=90, interval=90),
        r"at most 85.*shorter window, adjoint=Stored\(\)",
    ),
    "adagrad": (
        lambda: made(with_options(kind=torch.optim.Adagrad)),
        r"Adagrad: use one of torch.optim.SGD",
    ),
    "foreign parameter": (
        lambda: made(with_options(extra=[torch.zeros(3, requires_grad=True)])),
        "an optimizer of its own",
    ),
    "unknown validation loss": (lambda: made(validation_loss="f1"), "'expected_accuracy', 'nll'"),
    "loss that averages": (
        lambda: made(loss=nn.functional.cross_entropy).loss(*bench(MLP).batches[0]),
        "reduction='none'",
    ),
    "unknown layer": (lambda: dt.Student(bench(MLP).module, "haed"), "candidates: head"),
    "data parallel": (
        lambda: dt.Student(nn.DataParallel(bench(MLP).module), "module.head"),
        "bare",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_the_remedy(name: str) -> None:
    attempt, remedy = REFUSALS[name]
    with pytest.raises(dt.ConfigError, match=remedy) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_distributed_wrapper_is_refused() -> None:
    store = torch.distributed.HashStore()  # pyright: ignore
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(bench(MLP).module)
        with pytest.raises(dt.ConfigError, match="pass the bare module"):
            dt.Student(wrapped, "module.head")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("options", [{"nesterov": True}, {"momentum": 0.0}])
def test_stored_takes_what_cannot_be_undone(options: dict[str, Any]) -> None:
    assert made(with_options(**options), adjoint=dt.Stored())


# What it refuses in the loop


def started(case: Any = MLP, setting: Setting = EVERY_STEP, **options: Any) -> Any:
    run = bench(case, setting)
    return run, run.coach(**options)


def test_two_losses_without_a_step() -> None:
    run, coach = started()
    coach.loss(*run.batches[0]).backward()
    with pytest.raises(dt.ConfigError, match="gradient accumulation"):
        coach.loss(*run.batches[0])


@pytest.mark.parametrize("scale", [0.5, 1024.0])
def test_scaled_loss(scale: float) -> None:
    run, coach = started()
    with pytest.raises(dt.ConfigError, match="no GradScaler, no accumulation"):
        (scale * coach.loss(*run.batches[0])).backward()


def test_gradients_left_over() -> None:
    run, coach = started()
    step(run, coach, 0)
    with pytest.raises(dt.ConfigError, match=r"optimizer.zero_grad\(\) before each"):
        coach.loss(*run.batches[0]).backward()


CHANGES: dict[str, Callable[[Bench], Any]] = {
    "norm clipping": lambda run: nn.utils.clip_grad_norm_(run.module.parameters(), 0.1),
    "value clipping": lambda run: nn.utils.clip_grad_value_(run.module.parameters(), 0.1),
    "scaling": lambda run: next(run.module.parameters()).grad.mul_(0.5),  # pyright: ignore
    "replacing": lambda run: setattr(
        next(run.module.parameters()), "grad", torch.ones_like(next(run.module.parameters()))
    ),
}


@pytest.mark.parametrize("name", [*CHANGES])
def test_changed_gradients(name: str) -> None:
    run, coach = started()
    before = flat(run.module.state_dict())
    coach.loss(*run.batches[0]).backward()
    CHANGES[name](run)
    with pytest.raises(dt.ConfigError, match="clipping, unscaling, a second loss"):
        run.optimizer.step()
    assert same(flat(run.module.state_dict()), before)


def test_second_backward() -> None:
    """torch cannot tell it from the first, so the replay has to."""
    run, coach = started(MLP, Setting(window=2))
    for x, y in run.batches:
        run.optimizer.zero_grad()
        coach.loss(x, y).backward()
        run.module(run.valid[0]).square().sum().backward()
        run.optimizer.step()
    with pytest.raises(dt.ReplayError, match="."):
        coach.update(run.valid)


def test_autocast() -> None:
    run, coach = started()
    with torch.autocast("cpu"), pytest.raises(dt.ConfigError, match="outside torch.autocast"):
        coach.loss(*run.batches[0])


def test_meta_gradient_before_any_step() -> None:
    run, coach = started()
    with pytest.raises(dt.ConfigError, match="no step was recorded"):
        coach.meta_gradient(*run.valid)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled])
def test_teacher_changed_inside_the_window(adjoint: type[dt.AbstractAdjoint]) -> None:
    run, coach = started(MLP, Setting(window=2), adjoint=adjoint())
    run.train(coach)
    with torch.no_grad():
        next(run.teacher.parameters()).add_(0.1)
    with pytest.raises(dt.ConfigError, match="the teacher changed"):
        coach.meta_gradient(*run.valid)


@pytest.mark.parametrize("window", [2, 6])
@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled])
def test_auxiliary_loss(adjoint: type[dt.AbstractAdjoint], window: int) -> None:
    run, coach = started(MLP, Setting(window=window), adjoint=adjoint())
    for x, y in run.batches:
        run.optimizer.zero_grad()
        penalty = sum(leaf.square().sum() for leaf in run.module.parameters())
        (coach.loss(x, y) + 0.5 * penalty).backward()
        run.optimizer.step()
    with pytest.raises(dt.ReplayError, match="."):
        coach.meta_gradient(*run.valid)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled])
def test_parameters_moved_outside_the_optimizer(adjoint: type[dt.AbstractAdjoint]) -> None:
    run, coach = started(MLP, Setting(window=3), adjoint=adjoint())
    for t in range(6):
        step(run, coach, t)
        with torch.no_grad():
            for leaf in run.module.parameters():
                leaf.clamp_(-0.2, 0.2)
    with pytest.raises(dt.ReplayError, match="."):
        coach.meta_gradient(*run.valid)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored])
def test_inputs_changed_in_place(adjoint: type[dt.AbstractAdjoint]) -> None:
    run, coach = started(MLP, Setting(window=2), adjoint=adjoint())
    run.train(coach)
    run.batches[-1][0].mul_(-1)
    with pytest.raises(dt.ReplayError, match="changed in place after coach.loss"):
        coach.meta_gradient(*run.valid)


class Noisy(nn.Module):
    """Draws from a generator that no replay can know of."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(3, 4), nn.Linear(4, CLASSES)
        self.draws = random.Random(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lift(x) * self.draws.uniform(0.0, 5.0))


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored])
def test_module_that_is_not_deterministic(adjoint: type[dt.AbstractAdjoint]) -> None:
    run, coach = started(replace(MLP, module=Noisy), Setting(window=2), adjoint=adjoint())
    run.train(coach)
    with pytest.raises(dt.ReplayError, match="not deterministic"):
        coach.meta_gradient(*run.valid)


def test_drift_past_the_tolerance() -> None:
    """The copy that opens the window is not where the reversal arrives."""
    run, coach = started(MLP, Setting(window=3))
    run.train(coach)
    for leaf in coach._steps[0].state.theta.values():
        leaf.mul_(1.01)
    with pytest.raises(dt.ReplayError, match=r"drifted by .*Stored\(\)"):
        coach.update(run.valid)


def test_validation_loss_must_be_a_scalar() -> None:
    run, coach = started(validation_loss=lambda z, y: z.sum(1))
    step(run, coach, 0)
    with pytest.raises(dt.ConfigError, match="must return a scalar"):
        coach.meta_gradient(*run.valid)


# Guards: an error, and nothing changed


@contextmanager
def unchanged(run: Bench, coach: dt.Coach, words: str) -> Iterator[None]:
    """NumericError, with student, buffers, optimizer and teacher bit for bit as before."""

    def state() -> list[Any]:
        return flat([run.module.state_dict(), run.optimizer.state_dict(), coach.omega])

    before = state()
    with pytest.raises(dt.NumericError, match=words):
        yield
    assert same(state(), before)


BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Lookahead])
@pytest.mark.parametrize("value", BAD)
def test_bad_loss(value: float, adjoint: type[dt.AbstractAdjoint]) -> None:
    run, coach = started(NORM, adjoint=adjoint())
    step(run, coach, 1)
    x, y = run.batches[0]
    x = x.clone()
    x[0, 0, 0, 0] = value
    with unchanged(run, coach, "the loss of .* samples is not finite"):
        coach.loss(x, y)
    run.optimizer.zero_grad()
    step(run, coach, 1)  # the loop may go on


def steep(z: Tensor, y: Tensor) -> Tensor:
    """Finite values, NaN derivatives: the square root at 0."""
    return nn.functional.cross_entropy(z, y, reduction="none") + (0 * z).sum(1).sqrt()


def test_bad_gradient() -> None:
    run, coach = started(NORM, loss=steep)
    before = flat(run.module.state_dict())
    coach.loss(*run.batches[0]).backward()
    with pytest.raises(dt.NumericError, match="the step was not taken"):
        run.optimizer.step()
    assert same(flat(run.module.state_dict()), before) and not run.optimizer.state
    run.optimizer.zero_grad()
    coach.loss(*run.batches[0])


@pytest.mark.parametrize("value", BAD)
def test_bad_validation_loss(value: float) -> None:
    run, coach = started(NORM)
    step(run, coach, 0)
    with unchanged(run, coach, "validation loss or its gradient is not finite"):
        coach.update((run.valid[0] * value, run.valid[1]))
    assert coach.update(run.valid) is not None


def test_bad_validation_gradient() -> None:
    run, coach = started(NORM, validation_loss=lambda z, y: steep(z, y).mean())
    step(run, coach, 0)
    with unchanged(run, coach, "validation loss or its gradient is not finite"):
        coach.update(run.valid)


class Steep(dt.AbstractTeacher):
    """Finite weights whose derivative is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.z.abs().sqrt() * snapshot.losses


def test_bad_teacher_gradient() -> None:
    run, coach = started(NORM, teacher=Steep())
    step(run, coach, 0)
    with unchanged(run, coach, "the teacher's gradient is not finite"):
        coach.update(run.valid)


@pytest.mark.parametrize("value", BAD[:2])
def test_bad_teacher_weights(value: float) -> None:
    run, coach = started(NORM)
    step(run, coach, 0)
    with torch.no_grad():
        next(run.teacher.parameters()).fill_(value)
    with unchanged(run, coach, "the teacher's weights are not finite"):
        coach.loss(*run.batches[0])


class Single(dt.AbstractTeacher):
    """All weight on the first sample of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor(50.0, dtype=torch.float64))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        first = torch.zeros_like(snapshot.losses)
        first[0] = 1
        return self.z * first


@pytest.mark.parametrize("size, collapsed", [(100, True), (20, False)])
def test_collapse_is_reported(size: int, collapsed: bool) -> None:
    run, coach = started(MLP, replace(EVERY_STEP, sizes=(size,)), teacher=Single())
    step(run, coach, 0)
    if collapsed:
        with pytest.warns(dt.CollapseWarning, match="weight decay"):
            found = coach.update(run.valid)
    else:
        found = coach.update(run.valid)
    assert found is not None
    assert found.effective_sample_size == pytest.approx(1 / size, rel=1e-6)


# Found by an outside eye once, and kept from coming back.


def test_closure_is_exact_or_refused() -> None:
    run, coach = started(NORM, adjoint=dt.Stored())

    def closure() -> Tensor:
        run.optimizer.zero_grad()
        value = coach.loss(*run.batches[0])
        value.backward()
        return value

    twin = bench(NORM, EVERY_STEP)
    other = twin.coach()
    step(twin, other, 0)
    try:
        run.optimizer.step(closure)
    except dt.ConfigError:
        return
    want = other.meta_gradient(*twin.valid)
    assert off(coach.meta_gradient(*run.valid), want) < TOLERANCE["adjoints"]


def test_update_after_a_plain_step() -> None:
    run, coach = started()
    step(run, coach, 0)
    run.optimizer.zero_grad()
    nn.functional.cross_entropy(run.module(run.batches[0][0]), run.batches[0][1]).backward()
    run.optimizer.step()
    assert coach.update(run.valid) is None


def test_frozen_teacher_parameter_stays() -> None:
    run = bench(MLP, EVERY_STEP)
    embedding = run.teacher.get_parameter("features.1.embedding.weight").requires_grad_(False)
    coach, before = run.coach(), embedding.clone()
    step(run, coach, 0)
    coach.update(run.valid)
    assert torch.equal(embedding, before)


def test_bad_validation_loss_in_the_lookahead() -> None:
    run, coach = started(NORM, adjoint=dt.Lookahead())
    step(run, coach, 0)
    coach.update((run.valid[0] * torch.nan, run.valid[1]))
    with unchanged(run, coach, "validation loss or its gradient is not finite"):
        coach.loss(*run.batches[0])


@pytest.mark.parametrize("window", [1, 2])
def test_teacher_changed_inside_the_window_through_weights(window: int) -> None:
    run, coach = started(MLP, Setting(window=window, through_weights=True))
    run.train(coach)
    with torch.no_grad():
        next(run.teacher.parameters()).add_(0.1)
    with pytest.raises(dt.ConfigError, match="the teacher changed"):
        coach.meta_gradient(*run.valid)


class Halved(dt.Uniform):
    """Every raw weight 1/2, averaged over the batch instead of normalised."""

    normalised = False

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.z.log().expand(len(snapshot.labels))


def test_effective_size_of_equal_weights_is_one() -> None:
    run, coach = started(teacher=Halved())
    step(run, coach, 0)
    found = coach.update(run.valid)
    assert found is not None and found.effective_sample_size == pytest.approx(1)
