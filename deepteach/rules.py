"""Optimizer steps as pure functions, each beside its inverse and its adjoint.

A rule advances (theta, slots) by one step given the gradient g of the weighted loss. It
handles the optimizer's own regulariser (weight decay) so that lambda appears both in the
step and in its derivative. Names of parameters that had no gradient in a step are absent
from that step's `hyper` and stay as they are, as in torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from deepteach.errors import ConfigError
from deepteach.tree import Params


class State(NamedTuple):
    """Student parameters and the optimizer's buffers, `slots[slot][parameter]`."""

    theta: Params
    slots: dict[str, Params]


@dataclass(frozen=True)
class Hyper:
    """What one parameter's step used: eta_t, mu, lambda of its parameter group."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False


class Pull(NamedTuple):
    """The adjoint of one step: what reaches theta_t and the slots directly, and g."""

    theta: Params
    slots: dict[str, Params]
    gradient: Params


class Rule:
    """How an optimizer steps. Subclasses hold the mathematics of one optimizer."""

    slot_names: ClassVar[tuple[str, ...]]
    linear: ClassVar[bool]
    """The step is affine in g, so its adjoint needs neither g nor the slots."""

    def hyper(self, group: dict) -> Hyper:
        """Read a parameter group, refusing what the rule does not model."""
        raise NotImplementedError

    def step(self, state: State, gradient: Params, hyper: dict[str, Hyper]) -> State:
        """(theta_t, slots_t) -> (theta_{t+1}, slots_{t+1}); differentiable."""
        raise NotImplementedError

    def pull(self, state: State, gradient: Params, hyper: dict[str, Hyper], later: State) -> Pull:
        """The transpose of `step`'s derivative applied to the cotangents `later`."""
        raise NotImplementedError

    def refuse_reversal(self, hyper: Hyper) -> str | None:
        """Why a step cannot be undone, or None where it can."""
        return f"{type(self).__name__} steps cannot be undone"

    def previous_theta(self, later: State, hyper: dict[str, Hyper]) -> Params:
        """theta_t from the state after the step."""
        raise NotImplementedError

    def previous_slots(
        self, theta: Params, gradient: Params, later: State, hyper: dict[str, Hyper]
    ) -> dict[str, Params]:
        """slots_t once theta_t and g_t are known."""
        raise NotImplementedError


class MomentumSGD(Rule):
    """torch.optim.SGD without dampening: v' = mu v + g + lambda theta, theta' = theta - eta v'.

    With Nesterov momentum theta' = theta - eta (g + lambda theta + mu v').
    torch's first momentum buffer is the gradient itself, which is v_0 = 0.
    """

    slot_names = ("momentum_buffer",)
    linear = True

    def hyper(self, group: dict) -> Hyper:
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
            g = torch.add(gradient[name], theta[name], alpha=h.weight_decay)
            velocity[name] = torch.add(g, velocity[name] * h.momentum)
            descent = (
                torch.add(g, velocity[name], alpha=h.momentum) if h.nesterov else velocity[name]
            )
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
        d_gradient = {name: torch.zeros_like(leaf) for name, leaf in d_theta.items()}
        for name, h in hyper.items():
            reach = h.lr * h.momentum if h.nesterov else h.lr
            through_v = torch.add(d_velocity[name], d_theta[name], alpha=-reach)
            d_g = torch.add(through_v, d_theta[name], alpha=-h.lr) if h.nesterov else through_v
            d_theta[name] = torch.add(d_theta[name], d_g, alpha=h.weight_decay)
            d_velocity[name] = through_v * h.momentum
            d_gradient[name] = d_g
        return Pull(d_theta, {"momentum_buffer": d_velocity}, d_gradient)

    def refuse_reversal(self, hyper: Hyper) -> str | None:
        if hyper.momentum == 0:
            return "SGD with momentum 0 forgets its last step, so it cannot be undone"
        if hyper.nesterov:
            return "a Nesterov step hides theta_t behind g(theta_t), so it cannot be undone"
        return None


_RULES: dict[type[torch.optim.Optimizer], Rule] = {torch.optim.SGD: MomentumSGD()}


def rule_for(optimizer: torch.optim.Optimizer) -> Rule:
    """The rule of an optimizer; an unknown one is refused by name."""
    rule = _RULES.get(type(optimizer))
    if rule is None:
        known = ", ".join(f"torch.optim.{kind.__name__}" for kind in _RULES)
        raise ConfigError(
            f"no exact step rule is known for {type(optimizer).__name__}: use one of {known}"
        )
    return rule


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
