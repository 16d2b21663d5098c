"""Steps undone bit for bit: momentum SGD on a fixed-point grid, and its adjoint.

A number is an int64 X with value X / 2^48. Adding F(a) = trunc(a 2^48) to X is undone by
subtracting it. Multiplying the velocity by a rational momentum n/d is undone, too, because
what the division drops goes into a store S of mixed radix,

    r = X mod d;  S = S d + r;  X = (X div d) n + S mod n;  S = S div n

(floor division; the inverse is the same with n and d swapped), which grows by log2(d/n)
bits per entry and step. The idea is that of Maclaurin et al., arXiv 1502.03492; here S is
cut into int64 limbs instead of growing without bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepteach.core.adjoint.base import AbstractAdjoint, Window
from deepteach.core.optim import Hyper, MomentumSGD, Rule, State
from deepteach.errors import ConfigError, NumericError, ReplayError
from deepteach.tree import Params

BITS = 48
LIMIT = 2.0 ** (62 - BITS)
"""Largest magnitude of a parameter, velocity, gradient or step: sums of two fit an int64."""

DENOMINATOR = 2**16


def fixed(values: Tensor) -> Tensor:
    """Real numbers as multiples of 2^-48, rounded towards zero."""
    return (values.double() * 2.0**BITS).to(torch.int64)


def real(grid: Tensor) -> Tensor:
    """Fixed-point numbers as float64."""
    return grid.double() * 2.0**-BITS


def rational(momentum: float) -> tuple[int, int]:
    """The nearest n/d with d = 2^16, in lowest terms."""
    n = round(momentum * DENOMINATOR)
    shared = math.gcd(n, DENOMINATOR)
    return n // shared, DENOMINATOR // shared


def scaled(grid: Tensor, store: Tensor, n: int, d: int) -> tuple[Tensor, Tensor]:
    """(X, S) -> (X n/d, S with what that dropped); undone by the call with d, n."""
    store = store * d + torch.remainder(grid, d)
    grid = torch.div(grid, d, rounding_mode="floor") * n + torch.remainder(store, n)
    return grid, torch.div(store, n, rounding_mode="floor")


def checksum(grid: Tensor) -> int:
    """sum_i c_i X_i mod 2^64 with odd c_i: any single wrong entry changes it."""
    index = torch.arange(grid.numel(), device=grid.device)
    return int((grid.reshape(-1) * (index * 0x1E3779B97F4A7C15 | 1)).sum())


class ExactRule(MomentumSGD):
    """Momentum SGD with the momentum n/d that is in force on the grid."""

    def __init__(self, optimizer: ExactSGD) -> None:
        self.optimizer = optimizer

    def hyper(self, group: dict, held: dict) -> Hyper:
        n, d = rational(group["momentum"])
        return Hyper(float(group["lr"]), n / d, float(group["weight_decay"]))


class ExactSGD(torch.optim.Optimizer):
    """Momentum SGD, v' = (n/d) v + g + lambda theta, theta' = theta - eta v', in fixed point.

    Takes the place of `torch.optim.SGD`; works with every adjoint, and its steps can be
    undone bit for bit by `Exact`. n/d is the fraction with d = 2^16 next to `momentum`. The
    grid is finer than float32 (2^-48); the parameters are moved onto it when they are given.
    Memory: 28 bytes per float32 parameter, and the limbs while an `Exact` asks for them.

    Args:
        params: as `torch.optim.SGD` takes them.
        lr: eta, 0 or more.
        momentum: mu, strictly between 0 and 1.
        weight_decay: lambda, 0 or more.

    Raises:
        ConfigError: a momentum whose n/d is not strictly between 0 and 1, or a negative rate
            or decay.
        NumericError: a number that is not finite or outside +-16384; no step was taken.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        self.undoable = 0
        """How many of the last steps can be undone; set by the adjoint that needs it."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @property
    def rule(self) -> ExactRule:
        """Its step as a function that can be undone bit for bit."""
        return ExactRule(self)

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; also checks the settings, and moves the parameters onto the grid."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if not 0 < round(group["momentum"] * DENOMINATOR) < DENOMINATOR:
            raise ConfigError(
                f"ExactSGD needs a momentum between 0 and 1, got {group['momentum']}: use "
                "torch.optim.SGD with adjoint=Stored() or Checkpointed()"
            )
        if group["lr"] < 0 or group["weight_decay"] < 0:
            raise ConfigError("ExactSGD needs lr and weight_decay of at least 0")
        for leaf in group["params"]:
            _within([("parameter", leaf)])
            leaf.copy_(real(fixed(leaf)))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of all parameters that have a gradient, or of none."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = [
            (leaf, self._stepped(leaf, group))
            for group in self.param_groups
            for leaf in group["params"]
            if leaf.grad is not None
        ]
        for leaf, held in ready:
            self.state[leaf] = held
            leaf.copy_(real(held["theta"]))
        return loss

    def _stepped(self, leaf: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """What the optimizer holds of a parameter after its step."""
        held = self.state.get(leaf) or _fresh(leaf)
        theta, velocity = held["theta"], held["velocity"]
        moved = not torch.equal(real(theta).to(leaf.dtype), leaf)
        if moved:  # the user set the parameters: go on from there, but not back beyond
            _within([("parameter", leaf)])
            theta = fixed(leaf)
        assert leaf.grad is not None
        gradient = torch.add(leaf.grad, leaf, alpha=group["weight_decay"])
        _within([("gradient", gradient)])
        n, d = rational(group["momentum"])
        limbs, counts, checks = list(held["limbs"]), list(held["counts"]), list(held["checks"])
        store, bound = held["store"], held["bound"]
        if (bound + 1) * d > 2**63:  # the store would overflow: begin a new limb
            limbs, counts = [*limbs, store], [*counts, 0]
            store, bound = torch.zeros_like(store), 0
        later, store = scaled(velocity, store, n, d)
        later = later + fixed(gradient)
        step = group["lr"] * real(later)
        end = theta - fixed(step)
        _within([("velocity", real(later)), ("step", step), ("parameter", real(end))])
        counts[-1] += 1
        if self.undoable:
            checks.append([checksum(theta), checksum(velocity)])
        if moved or not self.undoable:
            limbs, counts, checks = [], [0], []
            store, bound = torch.zeros_like(store), 0
        else:
            bound = (bound * d + d - 1) // n
        while len(counts) > 1 and sum(counts[1:]) >= self.undoable:
            del limbs[0], counts[0]
        return {
            "theta": end,
            "velocity": later,
            "momentum_buffer": real(later).to(leaf.dtype),
            "store": store,
            "bound": bound,
            "limbs": limbs,
            "counts": counts,
            "checks": checks[max(len(checks) - sum(counts), 0) :],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, which would round the integers to the parameters' precision, though."""
        super().load_state_dict(state_dict)
        saved = itertools.chain.from_iterable(g["params"] for g in state_dict["param_groups"])
        present = itertools.chain.from_iterable(g["params"] for g in self.param_groups)
        for key, leaf in zip(saved, present, strict=True):
            if key in state_dict["state"]:
                held = state_dict["state"][key]
                self.state[leaf] = {name: _copied(item, leaf) for name, item in held.items()}


def _fresh(leaf: Tensor) -> dict[str, Any]:
    theta = fixed(leaf)
    zeros = torch.zeros_like(theta)
    empty = {"limbs": [], "counts": [0], "checks": []}
    return {"theta": theta, "velocity": zeros, "store": zeros, "bound": 0, **empty}


def _copied(item: Any, leaf: Tensor) -> Any:
    if isinstance(item, Tensor):
        return item.to(leaf.device, copy=True)
    return [_copied(part, leaf) for part in item] if isinstance(item, list) else item


def _within(named: Sequence[tuple[str, Tensor]]) -> None:
    for name, values in named:
        # NaN fails the comparison, too.
        if values.numel() and not float(values.detach().abs().max()) <= LIMIT:
            raise NumericError(
                f"ExactSGD: a {name} is not finite or beyond +-{LIMIT:.0f}; the step was not "
                "taken: lower the learning rate or check the batch"
            )


class Trail(NamedTuple):
    """The integers of one parameter on the way back."""

    theta: Tensor
    velocity: Tensor
    store: Tensor
    limbs: list[Tensor]
    counts: list[int]
    checks: list[list[int]]


class Past:
    """A copy of what an `ExactSGD` holds, by parameter, that walks back step by step."""

    def __init__(self, held: dict[str, dict[str, Any]]) -> None:
        self.trails: dict[str, Trail] = {}
        for name, own in held.items():
            if own:
                self.trails[name] = Trail(*(own[field] for field in Trail._fields))

    def theta(self, later: Params, hyper: dict[str, Hyper]) -> Params:
        """theta_t from theta_{t+1}; the velocity stays that of after the step."""
        theta = dict(later)
        for name, h in hyper.items():
            trail = self.trails.get(name)
            if trail is None or not trail.checks:
                raise ReplayError(
                    f"the steps of {name!r} were not kept from the start of the window: the "
                    "optimizer was exchanged or restored, or its parameters were set by hand"
                )
            grid = trail.theta + fixed(h.lr * real(trail.velocity))
            _compare(grid, trail.checks[-1][0], name)
            self.trails[name] = trail._replace(theta=grid)
            theta[name] = real(grid).to(later[name].dtype)
        return theta

    def velocity(self, theta: Params, gradient: Params, hyper: dict[str, Hyper]) -> Params:
        """v_t, once theta_t and g_t are known."""
        trails, found = dict(self.trails), {}
        for name, h in hyper.items():
            _, velocity, store, limbs, counts, checks = trail = trails[name]
            if counts[-1] == 0:
                if bool(store.any()):
                    raise _mismatch(name)
                store, limbs, counts = limbs[-1], limbs[:-1], counts[:-1]
            g = torch.add(gradient[name], theta[name], alpha=h.weight_decay)
            n, d = rational(h.momentum)
            grid, store = scaled(velocity - fixed(g), store, d, n)
            _compare(grid, checks[-1][1], name)
            counts = [*counts[:-1], counts[-1] - 1]
            trails[name] = Trail(trail.theta, grid, store, limbs, counts, checks[:-1])
            found[name] = real(grid).to(theta[name].dtype)
        self.trails = trails
        return found


def _compare(grid: Tensor, kept: int, name: str) -> None:
    if checksum(grid) != kept:
        raise _mismatch(name)


def _mismatch(name: str) -> ReplayError:
    return ReplayError(
        f"undoing a step did not give back the bits of {name!r}: its gradient is not the one "
        "that was used (kernels or threads that do not repeat their bits, an added loss term, "
        "an input changed in place); use adjoint=Stored() or adjoint=Checkpointed()"
    )


class Exact(AbstractAdjoint):
    """Undoes the steps of an `ExactSGD` bit for bit, over any window.

    The idea is that of Maclaurin et al., arXiv 1502.03492, in fixed point. Beside the last
    state it takes log2(d/n) bits per parameter and step (0.15 at momentum 0.9), in int64
    limbs. A checksum of every state is compared on the way back.

    Raises:
        ConfigError: when the Coach is made: another optimizer than `ExactSGD`.
        ReplayError: in an update: what came out is not the state that was.
    """

    same_kernels = True
    splits = False
    undoes = True

    def check(self, rule: Rule, hyper: Sequence[Hyper], window: int, dtype: torch.dtype) -> None:
        super().check(rule, hyper, window, dtype)
        if not isinstance(rule, ExactRule):
            raise ConfigError(
                "Exact undoes the steps of dt.ExactSGD only, without clipping: use that "
                "optimizer, or adjoint=Checkpointed() with this one"
            )
        rule.optimizer.undoable = max(rule.optimizer.undoable, window)

    def keep(self, state: State, position: int, window: int) -> State | None:
        return None

    def theta_before(self, position: int, later: State, window: Window) -> Params:
        if "past" not in window.memo:
            past = Past(window.held)
            for name, trail in past.trails.items():
                leaf = window.final.theta[name]
                if not torch.equal(real(trail.theta).to(leaf.dtype), leaf):
                    raise ReplayError(
                        f"{name!r} was changed outside optimizer.step() after the last step: "
                        "change the student right after coach.update only"
                    )
            window.memo["past"] = past
        return window.memo["past"].theta(later.theta, window.steps[position].hyper)

    def state_before(
        self, position: int, theta: Params, gradient: Params, later: State, window: Window
    ) -> State:
        past: Past = window.memo["past"]
        step = window.steps[position]
        try:
            found = past.velocity(theta, gradient, step.hyper)
        except ReplayError:
            # Some backward kernels (group norm) differ where the result is differentiated
            # again; this pass takes those of the training step.
            again = window.objective.linearised(theta, step, window.omega, first_order=True)
            total = window.objective.ranks.summed(again.gradient, "replays")
            found = past.velocity(theta, total, step.hyper)
        return State(theta, {"momentum_buffer": {**later.slots["momentum_buffer"], **found}})

    def _drift(self, theta: Params, window: Window) -> float | None:
        return 0.0
