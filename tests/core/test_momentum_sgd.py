"""Momentum SGD: the step is torch's bit for bit, its inverse and its transpose are exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deepteach.core.optim import (
    AdamRule,
    Clipped,
    Hyper,
    MomentumSGD,
    State,
    longest_reversal,
    read_state,
    rule_for,
    unwrapped,
)
from deepteach.errors import ConfigError

RULE = MomentumSGD()
NAMES = ("a", "b", "c")


def parameters(dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.randn(3, 2, dtype=dtype).requires_grad_() for name in NAMES}


def optimizer(named: dict[str, Tensor], **options: Any) -> torch.optim.SGD:
    """Two groups: the second has another rate, momentum and decay."""
    base = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, **options}
    other = {"lr": 0.03, "momentum": base["momentum"] and 0.5, "weight_decay": 0.2}
    return torch.optim.SGD(
        [{"params": [named["a"]]}, {"params": [named["b"], named["c"]], **other}], **base
    )


def hypers(sgd: torch.optim.SGD, named: dict[str, Tensor]) -> dict[str, Hyper]:
    return {
        name: RULE.hyper(group, {})
        for name, leaf in named.items()
        for group in sgd.param_groups
        if any(leaf is member for member in group["params"]) and leaf.grad is not None
    }


VARIANTS = [
    {},
    {"nesterov": True},
    {"momentum": 0.0},
    {"weight_decay": 0.0},
    {"foreach": False},
    {"foreach": True},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_is_torch_bit_for_bit(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Also the first buffer, and a parameter whose gradient is missing in some steps."""
    named = parameters(dtype)
    sgd = optimizer(named, **options)
    state = State(
        {n: p.detach().clone() for n, p in named.items()}, read_state(sgd, named, RULE)[1]
    )
    for t in range(6):
        for name, leaf in named.items():
            leaf.grad = None if name == "c" and t % 2 == 0 else torch.randn_like(leaf)
        gradient = {n: p.grad for n, p in named.items() if p.grad is not None}
        hyper = hypers(sgd, named)
        sgd.param_groups[0]["lr"] *= 0.7
        hyper["a"] = RULE.hyper(sgd.param_groups[0], {})
        state = RULE.step(state, gradient, hyper)
        sgd.step()
        for name, leaf in named.items():
            assert torch.equal(state.theta[name], leaf.detach()), (t, name)
    held = read_state(sgd, named, RULE)
    if options.get("momentum", 0.9):
        for name in NAMES:
            slot = "momentum_buffer"
            assert torch.equal(held.slots[slot][name], state.slots[slot][name]), name


def random_state() -> tuple[State, dict[str, Tensor]]:
    def draw() -> dict[str, Tensor]:
        return {name: torch.randn(3, 2, dtype=torch.float64) for name in NAMES}

    return State(draw(), {"momentum_buffer": draw()}), draw()


HYPER = {"a": Hyper(0.1, 0.9, 0.01), "b": Hyper(0.02, 0.5, 0.3)}
NESTEROV = {name: Hyper(h.lr, h.momentum, h.weight_decay, True) for name, h in HYPER.items()}


def test_step_then_undo_is_the_identity() -> None:
    state, gradient = random_state()
    later = RULE.step(state, gradient, HYPER)
    theta = RULE.previous_theta(later, HYPER)
    slots = RULE.previous_slots(theta, gradient, later, HYPER)
    for name in NAMES:
        assert torch.allclose(theta[name], state.theta[name], rtol=1e-12, atol=1e-14)
        was = state.slots["momentum_buffer"][name]
        assert torch.allclose(slots["momentum_buffer"][name], was, rtol=1e-12, atol=1e-14)


def test_parameter_without_gradient_stays() -> None:
    state, gradient = random_state()
    later = RULE.step(state, gradient, HYPER)
    assert later.theta["c"] is state.theta["c"]
    assert later.slots["momentum_buffer"]["c"] is state.slots["momentum_buffer"]["c"]


@pytest.mark.parametrize("hyper", [HYPER, NESTEROV], ids=["plain", "nesterov"])
def test_pull_is_the_transpose_of_the_step(hyper: dict[str, Hyper]) -> None:
    """Against autograd's vector-Jacobian product with respect to theta, the slots and g."""
    state, gradient = random_state()
    later, _ = random_state()
    leaves = [*state.theta.values(), *state.slots["momentum_buffer"].values(), *gradient.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    out = RULE.step(state, gradient, hyper)
    ends = [*out.theta.values(), *out.slots["momentum_buffer"].values()]
    cotangents = [*later.theta.values(), *later.slots["momentum_buffer"].values()]
    want = torch.autograd.grad(ends, leaves, cotangents, allow_unused=True)
    pull = RULE.pull(state, gradient, hyper, later)
    got = [*pull.theta.values(), *pull.slots["momentum_buffer"].values(), *pull.gradient.values()]
    for ours, theirs in zip(got, want, strict=True):
        reference = torch.zeros_like(ours) if theirs is None else theirs
        assert torch.allclose(ours, reference, rtol=1e-12, atol=1e-14)


# B_max = ln(tolerance / eps) / ln(1 / mu) at tolerance 1e-3.
@pytest.mark.parametrize("momentum, steps", [(0.9, 85), (0.5, 13), (0.1, 3), (0.01, 1)])
def test_longest_reversal_in_float32(momentum: float, steps: int) -> None:
    assert longest_reversal(momentum, torch.float32, 1e-3) == steps


def test_longest_reversal_grows_with_precision_and_tolerance() -> None:
    assert longest_reversal(0.9, torch.float64, 1e-3) > 200
    assert longest_reversal(0.9, torch.float32, 1e-2) > longest_reversal(0.9, torch.float32, 1e-4)
    assert longest_reversal(1.0, torch.float32, 1e-3) > 10_000


@pytest.mark.parametrize("option, value", [("dampening", 0.1), ("maximize", True)])
def test_what_the_rule_does_not_model_is_refused(option: str, value: Any) -> None:
    group = {**torch.optim.SGD([torch.zeros(1)], lr=0.1).param_groups[0], option: value}
    with pytest.raises(ConfigError, match=option):
        RULE.hyper(group, {})


def test_unknown_optimizers_are_refused_by_name() -> None:
    class MySGD(torch.optim.SGD):
        """It steps otherwise."""

        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    for kind in (torch.optim.Adagrad, torch.optim.RMSprop, MySGD):
        with pytest.raises(ConfigError, match=rf"{kind.__name__}.*torch\.optim\.SGD"):
            rule_for(kind([torch.zeros(1)], lr=0.1))  # pyright: ignore


def test_a_subclass_that_does_not_step_otherwise_is_what_it_comes_from() -> None:
    class Named(torch.optim.SGD):
        def __init__(self, parameters: Any, name: str) -> None:
            super().__init__(parameters, lr=0.1, momentum=0.9)
            self.name = name

    class Twice(Named):
        pass

    class Decoupled(torch.optim.AdamW):
        pass

    leaf = torch.zeros(1, requires_grad=True)
    for _ in range(2):  # torch wraps a class's step when it is first used
        assert isinstance(rule_for(Twice([leaf], "a")), MomentumSGD)
        assert isinstance(rule_for(Decoupled([leaf])), AdamRule)


class Wrapper(torch.optim.Optimizer):
    """As accelerate's: holds the optimizer that steps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def test_a_wrapped_optimizer_is_the_one_inside() -> None:
    inner = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    assert unwrapped(Wrapper(Wrapper(inner))) is inner and unwrapped(inner) is inner


@pytest.mark.parametrize("hyper, remedy", [(Hyper(0.1), "momentum 0"), (NESTEROV["a"], "Nesterov")])
def test_irreversible_steps_say_why(hyper: Hyper, remedy: str) -> None:
    assert remedy in (RULE.refuse_reversal(hyper) or "")
    assert RULE.refuse_reversal(HYPER["a"]) is None


ADAM_VARIANTS = [
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"weight_decay": 0.1}),
    (torch.optim.Adam, {"betas": (0.5, 0.9), "eps": 1e-3}),
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.AdamW, {"weight_decay": 0.0, "foreach": True}),
]


@pytest.mark.parametrize("kind, options", ADAM_VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_is_torch_to_an_ulp(
    kind: type[torch.optim.Adam], options: dict[str, Any], dtype: torch.dtype
) -> None:
    """Over steps with missing gradients, whose parameters count their own steps."""
    named, rule = parameters(dtype), AdamRule()
    adam = kind(list(named.values()), lr=0.01, **options)
    state = read_state(adam, named, rule)
    for t in range(6):
        for name, leaf in named.items():
            leaf.grad = None if name == "c" and t % 2 == 0 else torch.randn_like(leaf)
        active = {n: p for n, p in named.items() if p.grad is not None}
        group = adam.param_groups[0]
        hyper = {n: rule.hyper(group, adam.state.get(p, {})) for n, p in active.items()}
        gradient = {n: p.grad for n, p in active.items() if p.grad is not None}
        state = rule.step(
            State({n: leaf.clone() for n, leaf in state.theta.items()}, state.slots),
            gradient,
            hyper,
        )
        adam.step()
        for name, leaf in named.items():
            ulp = torch.finfo(dtype).eps * leaf.detach().abs()
            assert ((state.theta[name] - leaf.detach()).abs() <= 2 * ulp).all(), (t, name)


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_undone(decoupled: bool) -> None:
    state, gradient = random_state()
    first = state.slots["momentum_buffer"]
    second = {name: leaf.square() for name, leaf in gradient.items()}
    state = State(state.theta, {"exp_avg": first, "exp_avg_sq": second})
    settings = Hyper(
        0.01, weight_decay=0.1, beta1=0.9, beta2=0.99, eps=1e-8, count=3, decoupled=decoupled
    )
    hyper = {"a": settings, "b": settings}
    rule = AdamRule()
    later = rule.step(state, gradient, hyper)
    theta = rule.previous_theta(later, hyper)
    slots = rule.previous_slots(theta, gradient, later, hyper)
    for name in NAMES:
        assert torch.allclose(theta[name], state.theta[name], rtol=1e-10)
        for slot, tree in slots.items():
            assert torch.allclose(tree[name], state.slots[slot][name], rtol=1e-9, atol=1e-12)


def test_clipping_is_torch_clipping() -> None:
    state, gradient = random_state()
    leaves = [torch.zeros_like(g).requires_grad_() for g in gradient.values()]
    for leaf, g in zip(leaves, gradient.values(), strict=True):
        leaf.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(leaves, 0.3)
    hyper = {name: Hyper(0.1, 0.9, 0.01) for name in NAMES}
    for ours, leaf in zip(Clipped(RULE, 0.3).clip(gradient, hyper).values(), leaves, strict=True):
        assert leaf.grad is not None
        assert torch.allclose(ours, leaf.grad, rtol=1e-12)
    assert torch.equal(Clipped(RULE, 1e9).clip(gradient, hyper)["a"], gradient["a"])
    assert state.theta.keys() == gradient.keys()
