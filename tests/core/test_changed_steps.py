"""What reaches a gradient, a parameter or the optimizer's memory beside coach.loss is found out.

Over one step and over several, whatever the adjoint, before the Coach and after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_label import Base, ByLabel, X, Y

import deepteach as dt
from deepteach.core.checks.step_examination import StepExamination

ADJOINTS = (dt.Unrolled, dt.Reversed, dt.Stored, dt.Checkpointed)


def no_grad(function: Callable) -> Any:
    """A hook that answers nothing."""

    def hook(*args: Any) -> None:
        with torch.no_grad():
            function(*args)

    return hook


def parameter_hook(module: Any, optimizer: Any) -> None:
    module.fc.weight.register_hook(lambda g: 0.5 * g)


def parameter_hook_in_place(module: Any, optimizer: Any) -> None:
    module.fc.weight.register_hook(lambda g: g.mul_(0.5))


def masking_hook(module: Any, optimizer: Any) -> None:
    """One of several, and only some entries."""
    module.a.bias.register_hook(lambda g: None)
    module.a.bias.register_hook(lambda g: g * torch.arange(8).gt(2))
    module.a.bias.register_hook(lambda g: None)


def accumulation_hook(module: Any, optimizer: Any) -> None:
    module.fc.weight.register_post_accumulate_grad_hook(no_grad(lambda leaf: leaf.grad.mul_(0.5)))


def replacing_hook(module: Any, optimizer: Any) -> None:
    def halve(leaf: Any) -> None:
        leaf.grad = 0.5 * leaf.grad

    module.fc.weight.register_post_accumulate_grad_hook(halve)


def node_hook(module: Any, optimizer: Any) -> None:
    node = module.fc.weight.view_as(module.fc.weight).grad_fn.next_functions[0][0]
    module.kept = [node]
    node.register_prehook(lambda grads: (0.5 * grads[0],))


def before_step(module: Any, optimizer: Any) -> None:
    def halve(*_: Any) -> None:
        for leaf in module.parameters():
            leaf.grad.mul_(0.5)

    optimizer.register_step_pre_hook(no_grad(halve))


def moving_before_step(module: Any, optimizer: Any) -> None:
    optimizer.register_step_pre_hook(no_grad(lambda *_: module.fc.weight.add_(0.01)))


def projection(module: Any, optimizer: Any) -> None:
    optimizer.register_step_post_hook(
        no_grad(lambda *_: module.fc.weight.data.clamp_(-0.2, 0.2)),
    )


def forgotten_momentum(module: Any, optimizer: Any) -> None:
    def halve(*_: Any) -> None:
        for held in optimizer.state.values():
            if isinstance(held.get("momentum_buffer"), torch.Tensor):
                held["momentum_buffer"].mul_(0.5)

    optimizer.register_step_post_hook(no_grad(halve))


CHANGES = [
    parameter_hook,
    parameter_hook_in_place,
    masking_hook,
    accumulation_hook,
    replacing_hook,
    node_hook,
    before_step,
    moving_before_step,
    projection,
    forgotten_momentum,
]


def loop(
    change: Callable | None,
    window: int,
    adjoint: dt.AbstractAdjoint,
    *,
    at: int = -1,
    kind: Callable = torch.optim.SGD,
    each: Callable = lambda module: None,
    **options: Any,
) -> dt.Coach:
    """Five steps; `change` comes before the coach (-1) or before a step."""
    torch.manual_seed(0)
    module = Base().double()
    optimizer = kind(module.parameters(), **{"lr": 0.2, **options})
    if at < 0 and change is not None:
        change(module, optimizer)
    student = dt.Student(module, "fc")
    coach = dt.Coach(student, optimizer, ByLabel(), interval=9, window=window, adjoint=adjoint)
    for i in range(5):
        if at == i and change is not None:
            change(module, optimizer)
        optimizer.zero_grad()
        coach.loss(X[20 * i : 20 * i + 20], Y[20 * i : 20 * i + 20]).backward()
        optimizer.step()
        each(module)
    return coach


@pytest.mark.parametrize("at", [-1, 0, 4])
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_it_is_refused(change: Callable, window: int, at: int) -> None:
    if change is node_hook and at > 0:
        at = 0  # later ones show at the next step that is looked at
    for adjoint in ADJOINTS:
        with pytest.raises((dt.ConfigError, dt.ReplayError), match="remove|steps do not") as caught:
            coach = loop(change, window, adjoint(), at=at, momentum=0.9)
            coach.meta_gradient(X[100:], Y[100:])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [c for c in CHANGES if c is not forgotten_momentum])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "nesterov": True}, {"kind": torch.optim.Adam, "lr": 0.01}]
)
def test_it_is_refused_of_steps_that_cannot_be_undone(change: Callable, options: Any) -> None:
    with pytest.raises((dt.ConfigError, dt.ReplayError), match="remove|steps do not"):
        loop(change, 1, dt.Stored(), **options).meta_gradient(X[100:], Y[100:])


def test_what_only_reads_changes_nothing() -> None:
    def reads(module: Any, optimizer: Any) -> None:
        module.fc.weight.register_hook(lambda g: None)
        module.fc.bias.register_hook(lambda g: g.clone())
        module.a.weight.register_post_accumulate_grad_hook(no_grad(lambda leaf: leaf.grad.norm()))
        optimizer.register_step_pre_hook(lambda *_: None)
        optimizer.register_step_post_hook(lambda *_: None)

    for at in (-1, 0, 3):
        for window in (1, 3):
            told = [
                loop(change, window, dt.Stored(), at=at, momentum=0.9).meta_gradient(
                    X[100:], Y[100:]
                )
                for change in (None, reads)
            ]
            assert torch.equal(told[0]["k"], told[1]["k"])


def test_a_hook_that_changes_gradients_at_times_is_seen_when_it_does() -> None:
    """Between the steps that are looked at, too."""
    calls = []

    def sometimes(module: Any, optimizer: Any) -> None:
        def clip(g: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return 0.5 * g if len(calls) == 3 else g

        module.fc.weight.register_hook(clip)

    with pytest.raises(dt.ConfigError, match="hook of the parameter 'fc.weight'"):
        loop(sometimes, 1, dt.Stored(), momentum=0.9)
    assert len(calls) == 3


@pytest.mark.parametrize("window", [1, 2])
def test_what_a_loop_writes_itself_is_found_over_one_step_too(window: int) -> None:
    @torch.no_grad()
    def clamp(module: Any) -> None:
        module.fc.weight.data.clamp_(-0.2, 0.2)

    for adjoint in ADJOINTS:
        with pytest.raises(dt.ReplayError, match="."):
            coach = loop(None, window, adjoint(), each=clamp, momentum=0.9)
            coach.meta_gradient(X[100:], Y[100:])


def test_a_change_that_is_gone_is_forgotten_with_its_step() -> None:
    handles: list[Any] = []

    def shortly(module: Any, optimizer: Any) -> None:
        hook = no_grad(lambda *_: module.fc.weight.clamp_(-0.1, 0.1))
        handles.append(optimizer.register_step_post_hook(hook))

    def off(module: Any) -> None:
        for handle in handles:
            handle.remove()

    coach = loop(shortly, 2, dt.Stored(), at=1, each=off, momentum=0.9)
    assert [step.wrong is not None for step in coach.recorder.recorded()][-2:] == [False, False]
    coach.meta_gradient(X[100:], Y[100:])


def test_steps_are_looked_at_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    own = StepExamination.before
    monkeypatch.setattr(
        StepExamination, "before", lambda self, *args: (looks.append(args[0]), own(self, *args))
    )
    loop(None, 1, dt.Stored(), momentum=0.9)
    assert [step.snapshot.clock.step for step in looks] == [0, 3]


def test_hooks_of_ours_vanish_with_the_coach() -> None:
    import gc

    module = Base().double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module.fc.weight.register_hook(lambda g: None)
    coach = dt.Coach(dt.Student(module, "fc"), optimizer, ByLabel(), interval=2)
    coach.loss(X[:20], Y[:20]).backward()
    optimizer.step()
    hooks: Any = module.fc.weight._backward_hooks
    assert len(hooks) == 3
    del coach
    gc.collect()
    assert len(hooks) == 1 and not optimizer._optimizer_step_pre_hooks
