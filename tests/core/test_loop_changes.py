"""Between two steps something else moves the student: the window begins anew, or one line."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import STEPS, VALID, Loop, Plain, X, Y, assert_exact, coached, differences, error, found
from torch import nn
from torch.nn.utils import prune

import deepteach as dt
from deepteach.errors import ConfigError, ReplayError

AT = 2
"""The step after which the student is moved, of 0 to 4: two steps follow."""


class Changed(Loop):
    """`change` happens once, `every` time or after the third step."""

    every = False

    def change(self) -> None:
        raise NotImplementedError

    def after(self, i: int) -> None:
        if self.every or i == AT:
            self.change()


class Clamped(Changed):
    def change(self) -> None:
        with torch.no_grad():
            for leaf in self.module.parameters():
                leaf.clamp_(-0.2, 0.2)


class ClampedData(Changed):
    """As Wasserstein GANs clip their weights: no version counter tells of it."""

    def change(self) -> None:
        for leaf in self.module.parameters():
            leaf.data.clamp_(-0.2, 0.2)


class Normed(Changed):
    def change(self) -> None:
        with torch.no_grad():
            self.module.fc.weight.copy_(torch.renorm(self.module.fc.weight, 2, 0, 0.3))


class Reset(Changed):
    def change(self) -> None:
        torch.manual_seed(7)
        self.module.fc.reset_parameters()


class Reloaded(Changed):
    """Early stopping puts the best weights back."""

    def after(self, i: int) -> None:
        if i == 1:
            self.saved = copy.deepcopy([self.module.state_dict(), self.optimizer.state_dict()])
        super().after(i)

    def change(self) -> None:
        self.module.load_state_dict(self.saved[0])


class OptimizerReloaded(Reloaded):
    def change(self) -> None:
        self.optimizer.load_state_dict(self.saved[1])


class MomentumCleared(Changed):
    def change(self) -> None:
        for held in self.optimizer.state.values():
            held["momentum_buffer"].zero_()


class Frozen(Changed):
    def change(self) -> None:
        self.module.a.requires_grad_(False)


class Unfrozen(Changed):
    def __init__(self) -> None:
        super().__init__()
        self.module.a.requires_grad_(False)

    def change(self) -> None:
        self.module.a.requires_grad_(True)


class GroupAdded(Unfrozen):
    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        return super().optimize(leaves[2:])

    def change(self) -> None:
        super().change()
        self.optimizer.add_param_group({"params": [*self.module.a.parameters()], "lr": 0.1})


class Pruned(Changed):
    def change(self) -> None:
        prune.l1_unstructured(self.module.a, "weight", 0.3)


class ParameterReplaced(Changed):
    def change(self) -> None:
        self.module.fc.bias = nn.Parameter(torch.ones(3).double())
        self.optimizer.param_groups[0]["params"][-1] = self.module.fc.bias


class LayerReplaced(Changed):
    def change(self) -> None:
        torch.manual_seed(4)
        self.module.fc = nn.Linear(5, 3).double()
        self.optimizer.param_groups[0]["params"][2:] = [*self.module.fc.parameters()]


class LayerAdded(Changed):
    """A head for later, or a metric: the pass does not run through it."""

    def change(self) -> None:
        self.module.head = nn.Dropout(0.1)


class Activated(Changed):
    """A layer without parameters is replaced."""

    internal = "2"

    def make(self) -> Any:
        return nn.Sequential(nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 3))

    def change(self) -> None:
        self.module[1] = nn.GELU()


class ActivatedByMore(Activated):
    def change(self) -> None:
        self.module[1] = nn.Sequential(nn.GELU(), nn.Softsign())


class SettingReplaced(Activated):
    """The new layer is of the same class."""

    def change(self) -> None:
        self.module[1] = nn.Softplus(2.0)


class LayerRemoved(Activated):
    def make(self) -> Any:
        return nn.Sequential(
            nn.Linear(6, 5), nn.Sequential(nn.Tanh(), nn.Softsign()), nn.Linear(5, 3)
        )

    def change(self) -> None:
        del self.module[1][1]


class StrangeStep(Changed):
    def change(self) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.module(X), Y).backward()
        self.optimizer.step()


ONCE = [
    *(Clamped, ClampedData, Normed, Reset, Reloaded, OptimizerReloaded, MomentumCleared, Frozen),
    *(Unfrozen, GroupAdded, Pruned, ParameterReplaced, LayerReplaced, StrangeStep),
    *(LayerAdded, Activated, ActivatedByMore, SettingReplaced, LayerRemoved),
]


@pytest.mark.parametrize("kind", ONCE)
@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_window_begins_after_it(kind: type[Changed], window: int) -> None:
    """Of four steps asked for, the two since then are looked through, exactly; it is told."""
    want = differences(kind, min(window, 2))
    for adjoint in (dt.Stored(), dt.Reversed(), dt.Unrolled()):
        if window > 2:
            with pytest.warns(dt.WindowWarning, match="back over 2 of 4 steps"):
                assert error(found(kind, window, adjoint), want) < 1e-6
        else:
            assert error(found(kind, window, adjoint), want) < 1e-6


@pytest.mark.parametrize("kind, left", [(Clamped, 2), (ClampedData, 1)])
def test_it_begins_where_a_state_was_kept(kind: type[Changed], left: int) -> None:
    """What no version tells of is found at the update, when states were kept regardless."""
    with pytest.warns(dt.WindowWarning, match=f"back over {left} of 4 steps"):
        got = found(kind, 4, dt.Checkpointed())
    assert error(got, differences(kind, left)) < 1e-6


@pytest.mark.parametrize("kind", ONCE)
def test_nothing_is_left_right_after_it(kind: type[Changed]) -> None:
    loop = coached(kind, 1)
    for i in range(AT + 1):
        loop.step(i, *loop.batch(i))
    with pytest.raises(ReplayError, match="right after optimizer.step.*or remove it") as got:
        loop.coach.meta_gradient(*VALID)
    assert "\n" not in str(got.value)


@pytest.mark.parametrize(
    "kind", [ClampedData, Reloaded, MomentumCleared, StrangeStep, ActivatedByMore]
)
def test_an_update_that_falls_there_waits_for_the_next_step(kind: type[Changed]) -> None:
    loop = coached(kind, 2, interval=AT + 1)
    for i in range(AT + 1):
        loop.step(i, *loop.batch(i))
    with pytest.warns(dt.WindowWarning, match="waits for the next step"):
        assert loop.coach.update(VALID) is None
    loop.step(3, *loop.batch(3))
    got = loop.coach.update(VALID)
    assert got is not None and got.step == AT + 2


@pytest.mark.parametrize("kind", [Clamped, ClampedData, Reset, Frozen])
def test_a_first_order_estimate_is_of_the_present_student(kind: type[Changed]) -> None:
    """It looks back through no step: what moved the student since is no matter."""
    loop = coached(kind, 1, adjoint=dt.FirstOrder(1e-3))
    for i in range(AT + 1):
        loop.step(i, *loop.batch(i))
    got = loop.coach.meta_gradient(*VALID)["k"]
    module, plain = loop.module, Plain(loop.module, loop.teacher)
    leaves = [leaf for leaf in module.parameters() if leaf.requires_grad]
    loss = nn.functional.cross_entropy(module(VALID[0]), VALID[1])
    along = torch.autograd.grad(loss, leaves)

    def slope(moved: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            loop.teacher.k.add_(moved)
        found = torch.autograd.grad(plain.loss(*loop.batch(AT)), leaves)
        with torch.no_grad():
            loop.teacher.k.sub_(moved)
        return -sum((a * b).sum() for a, b in zip(found, along, strict=True))  # type: ignore[return-value]

    with pytest.raises(ConfigError, match="make the Coach with that adjoint"):
        loop.coach.meta_gradient(*VALID, adjoint=dt.Reversed())
    axes = 1e-5 * torch.eye(3, dtype=torch.float64)
    assert error(got, torch.stack([(slope(e) - slope(-e)) / 2e-5 for e in axes])) < 1e-5


def always(kind: type[Changed]) -> type[Changed]:
    return type(f"Always{kind.__name__}", (kind,), {"every": True})


class HookBefore(Loop):
    """A max-norm constraint as a hook of the optimizer, made before the Coach or after."""

    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        optimizer = super().optimize(leaves)
        optimizer.register_step_post_hook(lambda *_: ClampedData.change(self))  # type: ignore[arg-type]
        return optimizer


class HookAfter(Loop):
    def prepare(self) -> None:
        self.optimizer.register_step_post_hook(lambda *_: ClampedData.change(self))  # type: ignore[arg-type]


class Slow:
    """Lookahead as an optimizer: every second step pulls the weights back."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer, self.taken = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["optimizer"], name)

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)
        self.taken += 1
        if self.taken % 2 == 0:
            for group in self.optimizer.param_groups:
                for leaf in group["params"]:
                    leaf.data.mul_(0.5)


class SlowWeights(Loop):
    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        return Slow(super().optimize(leaves))


EVERY = [*map(always, (Clamped, ClampedData, Normed, StrangeStep)), HookBefore, HookAfter]


@pytest.mark.filterwarnings("ignore::deepteach.errors.WindowWarning")
@pytest.mark.parametrize("kind", EVERY)
def test_what_happens_before_every_update_is_refused(kind: type[Loop]) -> None:
    """Else the teacher would never be taught, in silence."""
    loop = coached(kind, 1, interval=2)
    with pytest.raises(ReplayError, match="or remove it|; remove it") as got:
        for t in range(4):
            loop.step(t, *loop.batch(t))
            assert loop.coach.update(VALID) is None
    assert "\n" not in str(got.value)


class UpdatedFirst(Loop):
    """Weights are clipped after every step, and after the update."""

    def step(self, i: int, x: Any, y: torch.Tensor) -> None:
        super().step(i, x, y)
        if i < self.steps - 1:
            ClampedData.change(self)  # type: ignore[arg-type]


@pytest.mark.parametrize("adjoint", [dt.Stored, dt.Reversed])
def test_weights_may_be_clipped_after_the_update(adjoint: Any) -> None:
    """Then every update has a step that leads to it: exact over that one."""
    want = differences(UpdatedFirst, 1)
    assert error(found(UpdatedFirst, 1, adjoint()), want) < 1e-6
    with pytest.warns(dt.WindowWarning, match="over 1 of 3 steps"):
        assert error(found(UpdatedFirst, 3, adjoint()), want) < 1e-6


@pytest.mark.parametrize("window", [1, 2])
def test_slow_weights_are_taught_between(window: int) -> None:
    """Where they are pulled back every second step, one step leads to an update."""
    loop, taught = coached(SlowWeights, window, interval=3), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dt.WindowWarning)
        for t in range(12):
            loop.step(t % 5, *loop.batch(t % 5))
            taught += loop.coach.update(VALID) is not None
    assert taught >= 3
    assert error(found(SlowWeights, 1, dt.Stored()), differences(SlowWeights, 1)) < 1e-6


@pytest.mark.parametrize("kind", EVERY)
def test_a_teacher_that_is_not_taught_does_not_mind(kind: type[Loop]) -> None:
    loop = kind()
    loop.coach = dt.Coach(loop.student(), loop.optimizer, dt.Uniform(), interval=2, window=1)
    for t in range(8):
        loop.step(t % 5, *loop.batch(t % 5))
        loop.coach.update(VALID)
    assert loop.coach.steps == 8


class Averaged(Loop):
    """An average of the weights, made beside them."""

    def run(self, *args: Any) -> None:
        self.average = torch.optim.swa_utils.AveragedModel(self.module)
        super().run(*args)

    def after(self, i: int) -> None:
        self.average.update_parameters(self.module)


class Exchanged(Averaged):
    """Evaluated with the average in the module, which is then put back."""

    def after(self, i: int) -> None:
        super().after(i)
        own = copy.deepcopy(self.module.state_dict())
        self.module.load_state_dict(self.average.module.state_dict())
        self.module(X)
        self.module.load_state_dict(own)


@pytest.mark.parametrize("kind", [Loop, Averaged, Exchanged])
def test_an_average_beside_changes_nothing(kind: type[Loop]) -> None:
    assert_exact(kind, (1, 2, 4))


def test_an_average_left_in_the_module_is_found() -> None:
    loop: Any = coached(Averaged, 2)
    loop.run(2)
    loop.module.load_state_dict(loop.average.module.state_dict())
    with pytest.raises(ReplayError, match="changed the student's parameters"):
        loop.coach.meta_gradient(*VALID)


def test_a_state_saved_after_a_change_has_no_stale_steps() -> None:
    loop = coached(Loop, 2)
    loop.run(2)
    ClampedData.change(loop)  # type: ignore[arg-type]
    assert loop.coach.state_dict()["steps"] == []


# Gradients that are not those of coach.loss alone


class Otherwise(Loop):
    """Something else is in the gradient, always or at the last step only."""

    late = False

    def wrong(self, i: int) -> bool:
        return not self.late or i == STEPS - 1


class Penalised(Otherwise):
    def step(self, i: int, x: Any, y: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        penalty = sum(leaf.square().sum() for leaf in self.module.parameters())
        (self.coach.loss(x, y) + 0.1 * self.wrong(i) * penalty).backward()
        self.optimizer.step()


class Twice(Otherwise):
    def between(self, i: int) -> None:
        if self.wrong(i):
            self.module(X).square().mean().backward()


class Clipping(Otherwise):
    """Clips, but not to what the Coach was told."""

    options = {"clip_norm": 0.2}

    def between(self, i: int) -> None:
        nn.utils.clip_grad_norm_(self.module.parameters(), 0.1 if self.wrong(i) else 0.2)


class Unclipped(Otherwise):
    options = {"clip_norm": 0.1}

    def between(self, i: int) -> None:
        if not self.wrong(i):
            nn.utils.clip_grad_norm_(self.module.parameters(), 0.1)


class ByValue(Otherwise):
    options = {"clip_norm": 0.1}

    def between(self, i: int) -> None:
        if self.wrong(i):
            nn.utils.clip_grad_value_(self.module.parameters(), 0.05)
        else:
            nn.utils.clip_grad_norm_(self.module.parameters(), 0.1)


def by_adam(kind: type[Loop]) -> type[Loop]:
    def optimize(self: Loop, leaves: list[nn.Parameter]) -> Any:
        return torch.optim.AdamW(leaves, lr=0.1)

    return type(f"Adam{kind.__name__}", (kind,), {"optimize": optimize})


def late(kind: type[Loop]) -> type[Loop]:
    return type(f"Late{kind.__name__}", (kind,), {"late": True})


NONLINEAR = [Clipping, Unclipped, ByValue, *map(by_adam, (Penalised, Twice, Clipping))]
CASES = [*((kind, window) for kind in NONLINEAR for window in (1, 2)), (Penalised, 2), (Twice, 2)]


@pytest.mark.parametrize("kind, window", CASES)
@pytest.mark.parametrize("adjoint", [dt.Stored, dt.Reversed, dt.Unrolled])
def test_another_gradient_is_refused(
    kind: type[Loop], window: int, adjoint: Callable[[], dt.AbstractAdjoint]
) -> None:
    """From the first step on, or from one that nobody looks at."""
    for which, cause in ((kind, "did not step as its rule does.*second loss"), (late(kind), LATE)):
        with pytest.raises(ReplayError, match=cause) as got:
            found(which, window, adjoint())
        assert "\n" not in str(got.value)


LATE = r"another gradient .*Coach\(loss=\.\.\.\), and clip_norm|loss was added|added loss"


@pytest.mark.parametrize("kind", [Penalised, Twice])
def test_over_one_linear_step_an_added_loss_is_exact(kind: type[Loop]) -> None:
    """The step adds gradients, so what the teacher moves is the same."""
    assert_exact(late(kind), (1,))


def test_the_black_box_is_the_loop() -> None:
    """Both train the same weights."""
    loop, other = coached(Loop, 2), Loop()
    other.coach = Plain(other.module, other.teacher)
    loop.run(2)
    other.run(2)
    pairs = zip(loop.module.parameters(), other.module.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in pairs)


class LayerAddedBetween(Loop):
    def between(self, i: int) -> None:
        if i == 0:  # the first step is looked at
            self.module.head = nn.Dropout(0.1)


@pytest.mark.parametrize("options", [{}, {"accumulate": True}])
def test_layers_may_not_change_within_a_step(options: dict[str, Any]) -> None:
    loop = coached(LayerAddedBetween, 1, **options)
    told = "between coach.loss and optimizer.step.*before coach.loss"
    with pytest.raises(ConfigError, match=told) as got:
        loop.run(1)
    assert "\n" not in str(got.value)


def test_layers_may_not_change_between_the_parts_of_a_step() -> None:
    loop = coached(Loop, 1, accumulate=True)
    loop.coach.loss(*loop.batch(0)).backward()
    loop.module.head = nn.Dropout(0.1)
    with pytest.raises(ConfigError, match="layers of the student"):
        loop.coach.loss(*loop.batch(1))


@pytest.mark.parametrize("adjoint", [dt.Stored(), dt.FirstOrder(), dt.Checkpointed()])
def test_a_saved_window_of_other_layers_is_not_looked_back_through(adjoint: Any) -> None:
    loop, other = coached(Loop, 2, adjoint=adjoint), coached(LayerAdded, 2, adjoint=adjoint)
    loop.run(2)
    other.change()  # type: ignore[attr-defined]
    other.module.load_state_dict(loop.module.state_dict())
    other.optimizer.load_state_dict(loop.optimizer.state_dict())
    other.coach.load_state_dict(loop.coach.state_dict())
    with pytest.raises(ReplayError, match="layers of the student"):
        other.coach.meta_gradient(*VALID)
    other.step(4, *other.batch(4))
    with pytest.warns(dt.WindowWarning, match="layers of the student.*over 1 of 2"):
        assert other.coach.meta_gradient(*VALID)["k"].isfinite().all()
