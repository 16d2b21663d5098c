"""Slow, independent references for the meta-gradient, in plain torch.

Nothing here imports the engine's objective, rules or adjoints: the weights are w / sum w
as written, momentum SGD is four lines, and derivatives come from an unrolled graph or from
training again with a perturbed teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from cases import Bench, Case, answer, bench, linear_teacher
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import deepteach as dt
from deepteach.core.derivatives.recurrent import own_recurrence

Params = dict[str, Tensor]
Metric = Callable[[Tensor, Tensor], Tensor]
Draws = list[Tensor]
"""States of the global generators: the CPU's, then those of all CUDA devices."""


def draws() -> Draws:
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def draw_from(states: Draws) -> None:
    torch.set_rng_state(states[0])
    torch.cuda.set_rng_state_all(states[1:])


def metric(name: Any, case: Case | None = None) -> Metric:
    """The validation losses, written again; None is the mean of the case's own loss."""
    if name is None:
        assert case is not None and case.loss is not None
        own, kept = case.loss, case.kept
        return lambda z, y: own(z, y).sum() / (len(z) if kept is None else kept(y).sum())
    if name == "nll":
        return lambda z, y: sample_losses(z, y).mean()
    if name == "expected_accuracy":
        return lambda z, y: 1 - z.softmax(1).gather(1, y.unsqueeze(1)).mean()
    return name


def sample_losses(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)


def losses_of(case: Case, logits: Tensor, labels: Any) -> Tensor:
    return (case.loss or sample_losses)(logits, labels)


class Shaped(nn.Module):
    """A teacher's `sample_losses`, to be called with given parameters."""

    def __init__(self, teacher: dt.AbstractTeacher) -> None:
        super().__init__()
        self.inner = teacher

    def forward(self, logits: Tensor, seen: dt.Snapshot) -> Tensor:
        return self.inner.sample_losses(logits, seen, sample_losses)


def weighted(
    teacher: dt.AbstractTeacher,
    omega: Params,
    seen: dt.Snapshot,
    logits: Tensor,
    losses: Tensor,
    kept: Callable[[Any], Tensor] | None = None,
) -> Tensor:
    """The training loss as written, of a teacher that reads `seen`; ignored samples are cut out."""
    w = functional_call(teacher, omega, (seen,)).exp()
    if kept is not None:
        rows = kept(seen.labels)
        if not rows.any():
            return losses.sum()
        w, losses = w[rows], losses[rows]
    if teacher.shapes_loss:
        named = {f"inner.{name}": leaf for name, leaf in omega.items()}
        losses = functional_call(Shaped(teacher), named, (logits, seen))
    return (w * losses).sum() / (w.sum() if teacher.normalised else len(w))


@dataclass
class Moment:
    """A step of the window, as the loop saw it."""

    inputs: Any
    labels: Tensor
    generator: Draws
    module: nn.Module
    snapshot: dt.Snapshot
    hyper: dict[str, tuple[float, float, float]]


@dataclass
class Recording:
    """The window of one run: where it starts, its steps, and where it ends."""

    run: Bench
    theta: Params = field(default_factory=dict)
    velocity: Params = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    generator: Draws = field(default_factory=draws)


def look(case: Case, module: nn.Module, theta: Params, x: Any) -> tuple[Tensor, Tensor]:
    """(logits, internal state) of a copy of `module` at `theta`."""
    module, seen = copy.deepcopy(module), []
    layer = module.get_submodule(case.internal)
    if case.side == "input":
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    else:
        layer.register_forward_hook(lambda _m, _a, out: seen.append(out))
    args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
    # As the package's own passes: what cuDNN does with recurrence has no second derivative.
    with sdpa_kernel(SDPBackend.MATH), own_recurrence(module.modules()):
        raw = functional_call(module, theta, args, kwargs)
    state: Any = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    if state.dim() > 2:
        if callable(case.pool):
            state = case.pool(state)
        elif case.pool == "tokens":
            state = state.mean(tuple(range(1, state.dim() - 1)))
        else:
            state = state.mean((2, 3)) if case.pool == "avg" else state.flatten(1)
    return (raw if isinstance(raw, Tensor) else raw.logits), state


def record(run: Bench, coach: dt.Coach) -> Recording:
    """Run the loop and write the window down, without the help of the coach."""
    recording = Recording(run)
    names = {leaf: name for name, leaf in run.module.named_parameters() if leaf.requires_grad}

    def before(t: int) -> None:
        if t < run.setting.start:
            return
        if t == run.setting.start:
            state = run.optimizer.state
            for leaf, name in names.items():
                held = state[leaf].get("momentum_buffer") if leaf in state else None
                recording.theta[name] = leaf.detach().clone()
                recording.velocity[name] = torch.zeros_like(leaf) if held is None else held.clone()
        generator = draws()
        x, y = run.batches[t]
        with torch.no_grad(), torch.random.fork_rng():
            logits, internal = look(run.case, run.module, {}, x)
        losses = losses_of(run.case, logits, y)
        hyper = {
            names[leaf]: (group["lr"], group["momentum"], group["weight_decay"])
            for group in run.optimizer.param_groups
            for leaf in group["params"]
            if leaf in names
        }
        snapshot = dt.Snapshot(internal, logits, y, losses, coach.clock)
        module = copy.deepcopy(run.module)
        recording.moments.append(Moment(x, y, generator, module, snapshot, hyper))

    run.train(coach, before)
    recording.generator = draws()
    return recording


def unrolled(recording: Recording) -> Params:
    """d(validation loss)/d(teacher) by one graph through the window, its start constant."""
    run = recording.run
    setting, case = run.setting, run.case
    omega = {n: p.detach().clone().requires_grad_() for n, p in run.teacher.named_parameters()}
    theta = {name: leaf.clone().requires_grad_() for name, leaf in recording.theta.items()}
    velocity = dict(recording.velocity)
    with torch.random.fork_rng():
        for m in recording.moments:
            draw_from(m.generator)
            logits, internal = look(case, m.module, theta, m.inputs)
            losses = losses_of(case, logits, m.labels)
            seen = dt.Snapshot(internal, logits, m.labels, losses, m.snapshot.clock)
            if not (setting.through_weights or run.teacher.through):
                seen = m.snapshot
            value = weighted(run.teacher, omega, seen, logits, losses, case.kept)
            grads = torch.autograd.grad(
                value, list(theta.values()), create_graph=True, allow_unused=True
            )
            for name, g in zip(list(theta), grads, strict=True):
                if g is not None:
                    lr, mu, decay = m.hyper[name]
                    velocity[name] = mu * velocity[name] + g + decay * theta[name]
                    step = velocity[name]
                    if setting.nesterov:
                        step = g + decay * theta[name] + mu * velocity[name]
                    theta[name] = theta[name] - lr * step
        draw_from(recording.generator)
        logits, _ = look(case, run.module, theta, run.valid[0])
        end = metric(setting.validation_loss, case)(logits, run.valid[1])
    found = torch.autograd.grad(end, list(omega.values()), allow_unused=True)
    pairs = zip(omega.items(), found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


class Frozen(dt.AbstractTeacher):
    """A teacher that reads recorded snapshots: the stopped gradient, seen from outside.

    Without it a finite difference would also move the features along the perturbed run.
    With `through_weights` they shall move, all but the clock (its mean training loss).
    """

    def __init__(self, inner: dt.AbstractTeacher, through_weights: bool) -> None:
        super().__init__()
        self.inner, self.normalised, self.through = inner, inner.normalised, inner.through
        self.shapes_loss = inner.shapes_loss
        self.moves = through_weights or inner.through
        self.played: dt.Snapshot | None = None

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.inner(self._seen(snapshot))

    def sample_losses(self, logits: Tensor, snapshot: dt.Snapshot, loss: Any) -> Tensor:
        return self.inner.sample_losses(logits, self._seen(snapshot), loss)

    def _seen(self, snapshot: dt.Snapshot) -> dt.Snapshot:
        if self.played is None:
            return snapshot
        moving = replace(snapshot, clock=self.played.clock)
        return moving if self.moves else self.played


def train_again(
    recording: Recording, direction: Params, amount: float, teacher: Callable = linear_teacher
) -> float:
    """Validation loss after the same loop, the teacher moved where the window starts."""
    setting = recording.run.setting
    run = bench(recording.run.case, setting, teacher=teacher)
    frozen = Frozen(run.teacher, setting.through_weights)
    coach = run.coach(dt.Stored(), teacher=frozen)

    def before(t: int) -> None:
        if t == setting.start:
            with torch.no_grad():
                for name, leaf in run.teacher.named_parameters():
                    leaf.add_(direction[name], alpha=amount)
        if t >= setting.start:
            frozen.played = recording.moments[t - setting.start].snapshot

    run.train(coach, before)
    with torch.no_grad():
        logits = answer(copy.deepcopy(run.module), run.valid[0])
        return float(metric(setting.validation_loss, run.case)(logits, run.valid[1]))


def difference(
    recording: Recording, direction: Params, h: float = 1e-4, teacher: Callable = linear_teacher
) -> float:
    """Central difference of the validation loss along a direction of the teacher."""
    high = train_again(recording, direction, h, teacher)
    return (high - train_again(recording, direction, -h, teacher)) / (2 * h)


def directions(tree: Params, count: int) -> list[Params]:
    """Random unit directions in the space of the teacher."""
    g = torch.Generator().manual_seed(17)
    drawn = []
    for _ in range(count):
        raw = {n: torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in tree.items()}
        size = inner(raw, raw) ** 0.5
        drawn.append({name: leaf / size for name, leaf in raw.items()})
    return drawn


def inner(left: Params, right: Params) -> float:
    return sum(float((left[name].double() * right[name].double()).sum()) for name in left)


def size(tree: Params) -> float:
    return inner(tree, tree) ** 0.5


def off(got: Params, want: Params) -> float:
    """Relative distance |got - want| / |want| over all parameters."""
    assert got.keys() == want.keys()
    gap = {name: got[name].double() - want[name].double() for name in want}
    return size(gap) / size(want)


def lookahead(run: Bench, x: Any, y: Tensor) -> Params:
    """Meta-Weight-Net as published: a plain gradient step, unrolled, from the present state."""
    case, leaves = run.case, dict(run.module.named_parameters())
    theta = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    omega = {n: p.detach().clone().requires_grad_() for n, p in run.teacher.named_parameters()}
    rates = {
        name: group["lr"]
        for group in run.optimizer.param_groups
        for name, leaf in leaves.items()
        if any(leaf is member for member in group["params"])
    }
    logits, internal = look(case, run.module, theta, x)
    losses = sample_losses(logits, y)
    seen = dt.Snapshot(internal.detach(), logits.detach(), y, losses.detach())
    value = weighted(run.teacher, omega, seen, logits, losses)
    grads = torch.autograd.grad(value, list(theta.values()), create_graph=True)
    hat = {name: theta[name] - rates[name] * g for name, g in zip(list(theta), grads, strict=True)}
    logits, _ = look(case, run.module, hat, run.valid[0])
    end = metric(run.setting.validation_loss)(logits, run.valid[1])
    return dict(zip(omega, torch.autograd.grad(end, list(omega.values())), strict=True))


Held = dict[str, Any]
Formula = Callable[[Tensor, Tensor, Held, dict], tuple[Tensor, Held]]
"""(theta, g, what the optimizer holds, its group) -> (theta', what it then holds), as written."""


def sgd(theta: Tensor, g: Tensor, held: Held, group: dict) -> tuple[Tensor, Held]:
    g = g + group["weight_decay"] * theta
    v = group["momentum"] * held.get("momentum_buffer", 0) + g
    step = g + group["momentum"] * v if group["nesterov"] else v
    return theta - group["lr"] * step, {"momentum_buffer": v}


def adam(
    theta: Tensor, g: Tensor, held: Held, group: dict, decoupled: bool = False
) -> tuple[Tensor, Held]:
    """Kingma and Ba, algorithm 1; with `decoupled` the decay is that of AdamW."""
    (one, two), t = group["betas"], float(held.get("step", 0)) + 1
    decay = group["weight_decay"] * theta
    g = g if decoupled else g + decay
    m = one * held.get("exp_avg", 0) + (1 - one) * g
    v = two * held.get("exp_avg_sq", 0) + (1 - two) * g**2
    step = (m / (1 - one**t)) / ((v / (1 - two**t)).sqrt() + group["eps"])
    theta = theta - group["lr"] * (decay if decoupled else 0) - group["lr"] * step
    return theta, {"step": t, "exp_avg": m, "exp_avg_sq": v}


def adamw(theta: Tensor, g: Tensor, held: Held, group: dict) -> tuple[Tensor, Held]:
    return adam(theta, g, held, group, decoupled=True)


def rmsprop(theta: Tensor, g: Tensor, held: Held, group: dict) -> tuple[Tensor, Held]:
    v = group["alpha"] * held.get("square_avg", 0) + (1 - group["alpha"]) * g**2
    return theta - group["lr"] * g / (v.sqrt() + group["eps"]), {"square_avg": v}


@dataclass
class Followed:
    """A run with any optimizer: the window's recording, and what the optimizer held."""

    recording: Recording
    held: dict[str, Held] = field(default_factory=dict)
    groups: list[dict[str, dict]] = field(default_factory=list)


def follow(run: Bench, coach: dt.Coach) -> Followed:
    """As `record`, for any optimizer."""
    found = Followed(Recording(run))
    names = {leaf: name for name, leaf in run.module.named_parameters() if leaf.requires_grad}

    def before(t: int) -> None:
        if t < run.setting.start:
            return
        if t == run.setting.start:
            for leaf, name in names.items():
                found.recording.theta[name] = leaf.detach().clone()
                found.held[name] = copy.deepcopy(dict(run.optimizer.state.get(leaf, {})))
        x, y = run.batches[t]
        generator = draws()
        with torch.no_grad(), torch.random.fork_rng():
            logits, internal = look(run.case, run.module, {}, x)
        seen = dt.Snapshot(internal, logits, y, sample_losses(logits, y), coach.clock)
        moment = Moment(x, y, generator, copy.deepcopy(run.module), seen, {})
        found.recording.moments.append(moment)
        groups = run.optimizer.param_groups
        settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        pairs = list(zip(groups, settings, strict=True))
        found.groups.append(
            {names[leaf]: own for group, own in pairs for leaf in group["params"] if leaf in names}
        )

    run.train(coach, before)
    return found


def unrolled_by(followed: Followed, formula: Formula, clip: float | None = None) -> Params:
    """As `unrolled`, with any optimizer's step as written, behind a clipping by norm."""
    run = followed.recording.run
    omega = {n: p.detach().clone().requires_grad_() for n, p in run.teacher.named_parameters()}
    theta = {n: leaf.clone().requires_grad_() for n, leaf in followed.recording.theta.items()}
    held = {name: dict(own) for name, own in followed.held.items()}
    for m, groups in zip(followed.recording.moments, followed.groups, strict=True):
        logits, internal = look(run.case, m.module, theta, m.inputs)
        losses = sample_losses(logits, m.labels)
        seen = dt.Snapshot(internal, logits, m.labels, losses, m.snapshot.clock)
        seen = seen if run.setting.through_weights else m.snapshot
        value = weighted(run.teacher, omega, seen, logits, losses)
        grads = torch.autograd.grad(value, list(theta.values()), create_graph=True)
        if clip is not None:
            total = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
            grads = [g * torch.clamp(clip / (total + 1e-6), max=1) for g in grads]
        for name, g in zip(list(theta), grads, strict=True):
            theta[name], held[name] = formula(theta[name], g, held[name], groups[name])
    logits, _ = look(run.case, run.module, theta, run.valid[0])
    end = metric(run.setting.validation_loss)(logits, run.valid[1])
    return dict(zip(omega, torch.autograd.grad(end, list(omega.values())), strict=True))


def difference_by(
    followed: Followed,
    fresh: Callable[[], Bench],
    direction: Params,
    h: float = 1e-4,
    **options: Any,
) -> float:
    """As `difference`, for fresh benches with any optimizer and options of the coach."""
    start = followed.recording.run.setting.start

    def train_again(amount: float) -> float:
        run = fresh()
        frozen = Frozen(run.teacher, run.setting.through_weights)
        coach = run.coach(dt.Stored(), teacher=frozen, **options)

        def before(t: int) -> None:
            if t == start:
                with torch.no_grad():
                    for name, leaf in run.teacher.named_parameters():
                        leaf.add_(direction[name], alpha=amount)
            if t >= start:
                frozen.played = followed.recording.moments[t - start].snapshot

        run.train(coach, before)
        with torch.no_grad():
            logits = answer(copy.deepcopy(run.module), run.valid[0])
            return float(metric(run.setting.validation_loss)(logits, run.valid[1]))

    return (train_again(h) - train_again(-h)) / (2 * h)
