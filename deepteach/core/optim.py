"""Optimizer steps as pure functions, each beside its inverse and its adjoint.

A rule advances (theta, slots) by a step given the gradient g of the weighted loss; weight decay
is its own. Parameters without a gradient are absent from `hyper` and stay, as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from deepteach.errors import ConfigError
from deepteach.tree import Params


class State(NamedTuple):
    """What an optimizer step starts from and leads to.

    `theta` are the student's parameters by name, `slots[slot][name]` the optimizer's buffers, of
    whatever shape; 0 in its parameter's shape where the optimizer holds none yet.
    """

    theta: Params
    slots: dict[str, Params]

    def mapped(self, function: Callable[[Params], Params]) -> State:
        """Of each of its trees what `function` makes of it."""
        return State(function(self.theta), {k: function(tree) for k, tree in self.slots.items()})


@dataclass(frozen=True)
class Hyper:
    """What one parameter's step used: the settings of its group, and Adam's step count.

    Args:
        lr: eta, the learning rate that the step was taken with.
        momentum: mu, in [0, 1).
        weight_decay: lambda.
        nesterov: the momentum is Nesterov's.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        count: t, this step's number from 1 on, for the correction of the moments.
        decoupled: the weight decay bypasses the moments (AdamW).
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    count: int = 0
    decoupled: bool = False


class Pull(NamedTuple):
    """The adjoint of one step: what reaches theta_t and the slots directly, and g."""

    theta: Params
    slots: dict[str, Params]
    gradient: Params


class Rule:
    """How an optimizer steps. Subclasses hold the mathematics of one optimizer.

    To teach with another optimizer, subclass this: `hyper` and `step` are enough (the
    adjoint of `step` is found by automatic differentiation), and pass an instance as
    `Coach(rule=...)`. Undoing a step is optional.
    """

    slot_names: ClassVar[tuple[str, ...]] = ()
    """Keys of `optimizer.state[parameter]` whose tensors a step reads and writes."""
    linear: bool = False
    """The step is affine in g, so its adjoint needs neither g nor the slots."""
    of_groups: bool = False  # `hyper` reads the group alone: one is asked for, for all of it

    def hyper(self, group: dict, held: dict) -> Hyper:
        """Read the settings of one parameter's next step.

        Args:
            group: its entry of `optimizer.param_groups`.
            held: `optimizer.state[parameter]` before the step; empty before the first.

        Raises:
            ConfigError: a setting that the rule does not model.
        """
        raise NotImplementedError

    def clip(self, gradient: Params, hyper: dict[str, Hyper]) -> Params:
        """g_t as the optimizer finds it."""
        return gradient

    def step(self, state: State, gradient: Params, hyper: dict[str, Hyper]) -> State:
        """(theta_t, slots_t) -> (theta_{t+1}, slots_{t+1}); differentiable, nothing in place.

        `gradient` is g_t by parameter, without the optimizer's own regulariser.
        """
        raise NotImplementedError

    def pull(self, state: State, gradient: Params, hyper: dict[str, Hyper], later: State) -> Pull:
        """The transpose of `step`'s derivative applied to the cotangents `later`."""
        start, grads = state.mapped(_leaves), _leaves(gradient)
        with torch.enable_grad():
            stepped = self.step(start, grads, hyper)
        ends, cotangents = [], []
        pairs = zip(*([s.theta, *s.slots.values()] for s in (stepped, later)), strict=True)
        for tree, seed in pairs:
            for name, leaf in tree.items():
                if leaf.requires_grad:
                    ends.append(leaf)
                    cotangents.append(seed[name])
        trees = (start.theta, *start.slots.values(), grads)
        starts = [leaf for tree in trees for leaf in tree.values()]
        found = torch.autograd.grad(ends, starts, cotangents, allow_unused=True)
        each = zip(starts, found, strict=True)
        pulled = iter(torch.zeros_like(a) if d is None else d for a, d in each)
        rebuilt = [{name: next(pulled) for name in tree} for tree in trees]
        return Pull(rebuilt[0], dict(zip(start.slots, rebuilt[1:-1], strict=True)), rebuilt[-1])

    def refuse_reversal(self, hyper: Hyper) -> str | None:
        """Why a step cannot be undone, or None where it can."""
        return f"{type(self).__name__} steps cannot be undone"

    def memory(self, hyper: Hyper) -> float:
        """The factor that undoing a step divides a buffer by: 1/memory amplifies rounding."""
        return 1.0

    def previous_theta(self, later: State, hyper: dict[str, Hyper]) -> Params:
        """theta_t from the state after the step, for `Reversed`."""
        raise NotImplementedError

    def previous_slots(
        self, theta: Params, gradient: Params, later: State, hyper: dict[str, Hyper]
    ) -> dict[str, Params]:
        """slots_t once theta_t and g_t are known."""
        raise NotImplementedError


class MomentumSGD(Rule):
    """torch.optim.SGD without dampening: v' = mu v + g + lambda theta, theta' = theta - eta v'.

    With Nesterov momentum theta' = theta - eta (g + lambda theta + mu v').
    torch's first momentum buffer is the gradient itself: v_0 = 0. At mu = 0 a step leaves v alone.
    """

    slot_names = ("momentum_buffer",)
    linear = True
    of_groups = True

    def memory(self, hyper: Hyper) -> float:
        return hyper.momentum

    def hyper(self, group: dict, held: dict) -> Hyper:
        if group["dampening"] != 0:
            raise ConfigError("SGD with dampening is not supported: use dampening=0")
        if group["maximize"]:
            raise ConfigError("SGD with maximize=True is not supported: negate the loss")
        return Hyper(
            lr=float(group["lr"]),
            momentum=float(group["momentum"]),
            weight_decay=float(group["weight_decay"]),
            nesterov=bool(group["nesterov"]),
        )

    def step(self, state: State, gradient: Params, hyper: dict[str, Hyper]) -> State:
        theta, velocity = dict(state.theta), dict(state.slots["momentum_buffer"])
        for name, h in hyper.items():
            descent = g = torch.add(gradient[name], theta[name], alpha=h.weight_decay)
            if h.momentum != 0:
                descent = velocity[name] = torch.add(g, velocity[name] * h.momentum)
            if h.nesterov:
                descent = torch.add(g, velocity[name], alpha=h.momentum)
            theta[name] = torch.add(theta[name], descent, alpha=-h.lr)
        return State(theta, {"momentum_buffer": velocity})

    def previous_theta(self, later: State, hyper: dict[str, Hyper]) -> Params:
        theta, velocity = dict(later.theta), later.slots["momentum_buffer"]
        for name, h in hyper.items():
            theta[name] = torch.add(theta[name], velocity[name], alpha=h.lr)
        return theta

    def previous_slots(
        self, theta: Params, gradient: Params, later: State, hyper: dict[str, Hyper]
    ) -> dict[str, Params]:
        velocity = dict(later.slots["momentum_buffer"])
        for name, h in hyper.items():
            g = torch.add(gradient[name], theta[name], alpha=h.weight_decay)
            velocity[name] = (velocity[name] - g) / h.momentum
        return {"momentum_buffer": velocity}

    def pull(self, state: State, gradient: Params, hyper: dict[str, Hyper], later: State) -> Pull:
        d_theta, d_velocity = dict(later.theta), dict(later.slots["momentum_buffer"])
        d_gradient = {n: d if n in hyper else torch.zeros_like(d) for n, d in d_theta.items()}
        for name, h in hyper.items():
            reach = h.lr * h.momentum if h.nesterov else h.lr
            along = d_velocity[name] if h.momentum != 0 else torch.zeros_like(d_theta[name])
            through_v = torch.add(along, d_theta[name], alpha=-reach)
            d_g = torch.add(through_v, d_theta[name], alpha=-h.lr) if h.nesterov else through_v
            if h.momentum != 0:
                d_velocity[name] = through_v * h.momentum
            d_theta[name] = torch.add(d_theta[name], d_g, alpha=h.weight_decay)
            d_gradient[name] = d_g
        return Pull(d_theta, {"momentum_buffer": d_velocity}, d_gradient)

    def refuse_reversal(self, hyper: Hyper) -> str | None:
        if hyper.momentum == 0:
            return "SGD with momentum 0 forgets its last step, so it cannot be undone"
        if hyper.nesterov:
            return "a Nesterov step hides theta_t behind g(theta_t), so it cannot be undone"
        return None


class AdamRule(Rule):
    """torch.optim.Adam and AdamW (decoupled weight decay), without amsgrad.

        m' = m + (1 - b1)(g - m),  v' = b2 v + (1 - b2) g^2,
        theta' = theta (1 - eta lambda) - eta/(1 - b1^t) m' / (sqrt(v' / (1 - b2^t)) + eps)

    (Adam adds lambda theta to g instead.) Where v' = 0 the root's derivative, infinite, is
    taken as 0: the parameter never had a gradient. The step is nonlinear in g.
    """

    slot_names = ("exp_avg", "exp_avg_sq")

    def memory(self, hyper: Hyper) -> float:
        return min(hyper.beta1, hyper.beta2)

    def hyper(self, group: dict, held: dict) -> Hyper:
        for setting in ("amsgrad", "maximize"):
            if group[setting]:
                raise ConfigError(f"Adam with {setting}=True is not supported: use {setting}=False")
        return Hyper(
            lr=float(group["lr"]),
            weight_decay=float(group["weight_decay"]),
            beta1=float(group["betas"][0]),
            beta2=float(group["betas"][1]),
            eps=float(group["eps"]),
            count=int(held.get("step", 0)) + 1,
            decoupled=bool(group.get("decoupled_weight_decay", False)),
        )

    def _gradient(self, gradient: Tensor, theta: Tensor, h: Hyper) -> Tensor:
        return gradient if h.decoupled else torch.add(gradient, theta, alpha=h.weight_decay)

    def _scale(self, second: Tensor, h: Hyper) -> tuple[Tensor, float]:
        """Denominator and step size of theta' = decayed - size m' / denominator."""
        root = torch.where(second > 0, second, 1.0).sqrt() * (second > 0)
        size = h.lr / (1 - h.beta1**h.count)
        return root / (1 - h.beta2**h.count) ** 0.5 + h.eps, size

    def _decay(self, h: Hyper) -> float:
        return 1 - h.lr * h.weight_decay if h.decoupled else 1.0

    def step(self, state: State, gradient: Params, hyper: dict[str, Hyper]) -> State:
        theta = dict(state.theta)
        first, second = dict(state.slots["exp_avg"]), dict(state.slots["exp_avg_sq"])
        for name, h in hyper.items():
            g = self._gradient(gradient[name], theta[name], h)
            first[name] = torch.lerp(first[name], g, 1 - h.beta1)
            second[name] = torch.addcmul(second[name] * h.beta2, g, g, value=1 - h.beta2)
            denominator, size = self._scale(second[name], h)
            decayed = theta[name] * self._decay(h)
            theta[name] = torch.addcdiv(decayed, first[name], denominator, value=-size)
        return State(theta, {"exp_avg": first, "exp_avg_sq": second})

    def refuse_reversal(self, hyper: Hyper) -> str | None:
        if hyper.beta1 == 0 or hyper.beta2 == 0:
            return "Adam with a beta of 0 forgets its last step, so it cannot be undone"
        return None

    def previous_theta(self, later: State, hyper: dict[str, Hyper]) -> Params:
        theta = dict(later.theta)
        for name, h in hyper.items():
            denominator, size = self._scale(later.slots["exp_avg_sq"][name], h)
            first = later.slots["exp_avg"][name]
            moved = torch.addcdiv(theta[name], first, denominator, value=size)
            theta[name] = moved / self._decay(h)
        return theta

    def previous_slots(
        self, theta: Params, gradient: Params, later: State, hyper: dict[str, Hyper]
    ) -> dict[str, Params]:
        first, second = dict(later.slots["exp_avg"]), dict(later.slots["exp_avg_sq"])
        for name, h in hyper.items():
            g = self._gradient(gradient[name], theta[name], h)
            first[name] = (first[name] - (1 - h.beta1) * g) / h.beta1
            # Rounding may leave a second moment just below zero.
            second[name] = ((second[name] - (1 - h.beta2) * g * g) / h.beta2).clamp(min=0)
        return {"exp_avg": first, "exp_avg_sq": second}


class Clipped(Rule):
    """Another rule behind `torch.nn.utils.clip_grad_norm_(parameters, max_norm)`.

    g is scaled by min(1, max_norm / (|g| + 1e-6)) with the norm over all parameters that had
    a gradient, and that scale is differentiated.
    """

    def __init__(self, inner: Rule, max_norm: float) -> None:
        self.inner, self.max_norm = inner, max_norm
        self.slot_names = inner.slot_names  # type: ignore[misc]
        self.of_groups = inner.of_groups

    def clip(self, gradient: Params, hyper: dict[str, Hyper]) -> Params:
        norms = [torch.linalg.vector_norm(gradient[name]) for name in hyper]
        total = torch.linalg.vector_norm(torch.stack(norms)) + 1e-6
        # Its derivative is 0 below any norm, where that of max_norm / total may be infinite.
        scale = (total / self.max_norm).clamp(min=1).reciprocal()
        return {name: leaf * scale if name in hyper else leaf for name, leaf in gradient.items()}

    def hyper(self, group: dict, held: dict) -> Hyper:
        return self.inner.hyper(group, held)

    def memory(self, hyper: Hyper) -> float:
        return self.inner.memory(hyper)

    def step(self, state: State, gradient: Params, hyper: dict[str, Hyper]) -> State:
        return self.inner.step(state, self.clip(gradient, hyper), hyper)

    def refuse_reversal(self, hyper: Hyper) -> str | None:
        return self.inner.refuse_reversal(hyper)

    def previous_theta(self, later: State, hyper: dict[str, Hyper]) -> Params:
        return self.inner.previous_theta(later, hyper)

    def previous_slots(
        self, theta: Params, gradient: Params, later: State, hyper: dict[str, Hyper]
    ) -> dict[str, Params]:
        return self.inner.previous_slots(theta, self.clip(gradient, hyper), later, hyper)


_RULES: dict[type[torch.optim.Optimizer], Rule] = {
    torch.optim.SGD: MomentumSGD(),
    torch.optim.Adam: AdamRule(),
    torch.optim.AdamW: AdamRule(),
}


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside wrappers that hold it as `.optimizer`, as accelerate's does."""
    inner = getattr(optimizer, "optimizer", None)
    return optimizer if inner is None else unwrapped(inner)


def rule_for(optimizer: torch.optim.Optimizer) -> Rule:
    """The rule that it brings (`optimizer.rule`), or that of the class whose `step` it has.

    Raises:
        ConfigError: no rule is known, with the remedy.
    """
    own = getattr(optimizer, "rule", None)
    if isinstance(own, Rule):
        return own
    step = _bare(getattr(type(optimizer), "step", None))
    for kind in type(optimizer).__mro__:
        if kind in _RULES and step is _bare(kind.step):
            return _RULES[kind]
    known = ", ".join(f"torch.optim.{kind.__name__}" for kind in _RULES)
    raise ConfigError(
        f"no exact step rule is known for {type(optimizer).__name__}: use one of {known}, "
        "or pass a deepteach.core.optim.Rule of your own as Coach(rule=...)"
    )


def _bare(function: Any) -> Any:
    """A method without the wrappers that torch puts around every optimizer's step."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _leaves(tree: Params) -> Params:
    """Detached copies, each a leaf to differentiate."""
    return {name: value.detach().clone().requires_grad_() for name, value in tree.items()}


def longest_reversal(momentum: float, dtype: torch.dtype, tolerance: float) -> int:
    """B_max = ln(tolerance / eps) / ln(1 / mu): each undone step grows the rounding 1/mu."""
    if momentum >= 1:
        return 1_000_000
    return max(1, int(math.log(tolerance / torch.finfo(dtype).eps) / math.log(1 / momentum)))


def read_state(optimizer: torch.optim.Optimizer, named: Params, rule: Rule) -> State:
    """References (not copies) to theta and the slots as they are; absent slots are 0."""
    slots: dict[str, Params] = {slot: {} for slot in rule.slot_names}
    for name, parameter in named.items():
        held = optimizer.state.get(parameter, {})
        for slot in rule.slot_names:
            buffer: Tensor | None = held.get(slot)
            slots[slot][name] = torch.zeros_like(parameter) if buffer is None else buffer
    return State({name: leaf.detach() for name, leaf in named.items()}, slots)
