"""Deliberate errors in the engine: each must be caught by a named oracle.

A mutation rewrites one line of a function's source and puts the result in its place. The
comparison that must fail is first shown to pass on the engine as it is.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from cases import CASE, TOLERANCE, Setting, bench
from oracles import Params, lookahead, off, record, unrolled
from torch import Tensor

import deepteach as dt
from deepteach.core import objective, student
from deepteach.core.adjoint import base as adjoint
from deepteach.core.adjoint import guards
from deepteach.core.adjoint import one_step as lookahead_module
from deepteach.core.checks.step_examination import StepExamination
from deepteach.core.look_back import LookBack
from deepteach.core.optim import MomentumSGD
from deepteach.core.record import Step
from deepteach.core.validation import Validation


def gap(name: str, kind: Callable[[], dt.AbstractAdjoint], **changes: Any) -> float:
    """Relative distance of the engine's gradient from the own unroll."""
    run = bench(CASE[name], Setting(**changes))
    teaching = run.coach(kind())
    recording = record(run, teaching)
    return off(teaching.meta_gradient(*run.valid), unrolled(recording))


def loose() -> dt.AbstractAdjoint:
    """Reversal that tolerates any drift."""
    return dt.Reversed(tolerance=1e30)


def reversed_gap() -> float:
    return gap("batchnorm", loose, window=4)


def stored_gap() -> float:
    return gap("mlp", dt.Stored, window=4)


def through_gap() -> float:
    return gap("mlp", dt.Stored, window=4, through_weights=True)


def first_step_gap() -> float:
    return gap("mlp", dt.Unrolled, window=6, warmup=0)


def dropout_gap() -> float:
    return gap("dropout", dt.Stored, window=4)


def running_gap() -> float:
    return gap("running", dt.Stored, window=4)


def switched_mode_gap() -> float:
    """The module is put in eval mode after the window; only validation may see it."""
    run = bench(CASE["dropout"], Setting(window=4))
    teaching = run.coach(dt.Stored())
    recording = record(run, teaching)
    run.module.eval()
    return off(teaching.meta_gradient(*run.valid), unrolled(recording))


def lookahead_gap() -> float:
    run = bench(CASE["mlp"], Setting(window=1))
    teaching = run.coach(dt.Lookahead())
    run.train(teaching)
    want = lookahead(run, *run.batches[-1])
    run.step_and_return(teaching)
    return off(teaching.meta_gradient(*run.valid), want)


def buffers_gap() -> float:
    """How far a meta-gradient moves the module's buffers."""
    run = bench(CASE["batchnorm"], Setting(window=1))
    teaching = run.coach(dt.Stored())
    run.train(teaching)
    before = {name: leaf.double().clone() for name, leaf in run.module.named_buffers()}
    teaching.meta_gradient(*run.valid)
    return off({name: leaf.double() for name, leaf in run.module.named_buffers()}, before)


def repeated_gap() -> float:
    """Asking twice must give the same: a replay may not move what it reads."""
    run = bench(CASE["running"], Setting(window=4))
    teaching = run.coach(dt.Unrolled())
    run.train(teaching)
    first = teaching.meta_gradient(*run.valid)
    return off(teaching.meta_gradient(*run.valid), first)


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in the source of `owner.name`; `oracle` must notice."""

    title: str
    owner: Any
    name: str
    old: str
    new: str
    oracle: Callable[[], float]


STALE = """cotangent = State(tree_map(torch.add, pull.theta, curvature), {
                    "momentum_buffer": {
                        n: v + window.steps[position - 1].hyper[n].lr
                        * (pull.theta[n] + curvature[n] - cotangent.theta[n])
                        for n, v in pull.slots["momentum_buffer"].items()
                    }
                })"""

MUTATIONS = [
    Mutation(
        "rate of the wrong step in the adjoint",
        *(adjoint.AbstractAdjoint, "swept"),
        "rule.pull(earlier, gradient, step.hyper",
        "rule.pull(earlier, gradient, window.steps[max(position - 1, 0)].hyper",
        stored_gap,
    ),
    Mutation(
        "rate of the wrong step in the reversal",
        *(dt.Reversed, "theta_before"),
        "window.rule.previous_theta(later, step.hyper)",
        "window.rule.previous_theta(later, window.steps[max(position - 1, 0)].hyper)",
        reversed_gap,
    ),
    Mutation(
        "sum instead of normalised weights in the replay only",
        *(objective.Objective, "linearise"),
        "value = self.value(omega, snapshot, used, held)",
        "value = self.value(omega, snapshot, used, held) * len(used)",
        reversed_gap,
    ),
    Mutation(
        "weight decay dropped in g of the reversal",
        *(MomentumSGD, "previous_slots"),
        "alpha=h.weight_decay",
        "alpha=0",
        reversed_gap,
    ),
    Mutation(
        "weight decay dropped in the Hessian term",
        *(MomentumSGD, "pull"),
        "alpha=h.weight_decay",
        "alpha=0",
        stored_gap,
    ),
    Mutation(
        "v - g / mu instead of (v - g) / mu",
        *(MomentumSGD, "previous_slots"),
        "(velocity[name] - g) / h.momentum",
        "velocity[name] - g / h.momentum",
        reversed_gap,
    ),
    Mutation(
        "momentum's cotangent updated before theta's",
        *(adjoint.AbstractAdjoint, "swept"),
        "cotangent = State(tree_map(torch.add, pull.theta, curvature), pull.slots)",
        STALE,
        stored_gap,
    ),
    Mutation(
        "momentum dropped from its cotangent",
        *(MomentumSGD, "pull"),
        "through_v * h.momentum",
        "through_v",
        stored_gap,
    ),
    Mutation(
        "weights from the features of the present student",
        *(objective.Objective, "linearised"),
        "self.linearise(theta, snapshot, omega, step, first_order=first_order)",
        "self.linearise(theta, snapshot, omega, replace("
        "step, snapshot=self.replay({}, step).detach()), first_order=first_order)",
        stored_gap,
    ),
    Mutation(
        "weights of the replay from the labels alone",
        *(objective.Objective, "linearise"),
        "step.weights.detach()",
        "torch.full_like(step.weights, 1 / len(step.weights))",
        stored_gap,
    ),
    Mutation(
        "normaliser detached",
        *(objective, "normalise"),
        "torch.softmax(log_weights, 0)",
        "log_weights.exp() / log_weights.exp().sum().detach()",
        stored_gap,
    ),
    Mutation(
        "sign of d_omega",
        *(adjoint.AbstractAdjoint, "swept"),
        "d_omega = tree_map(torch.add, d_omega, part)",
        "d_omega = tree_map(torch.sub, d_omega, part)",
        stored_gap,
    ),
    Mutation(
        "Hessian term skipped at the last instead of the earliest step",
        *(adjoint.AbstractAdjoint, "swept"),
        "curvature, part = graph.pull_back(objective.gathered(pull.gradient))",
        "curvature, part = graph.pull_back(pull.gradient); "
        "curvature = curvature if later is not window.final else zeros_like(curvature)",
        stored_gap,
    ),
    Mutation(
        "teacher term of the earliest step lost",
        *(adjoint.AbstractAdjoint, "swept"),
        "range(window.start, len(window.steps))",
        "range(window.start + 1, len(window.steps))",
        stored_gap,
    ),
    Mutation(
        "weights' dependence on the student dropped",
        *(objective.Objective, "_log_weights"),
        "seen = snapshot.detach() if self.held else snapshot",
        "seen = snapshot.detach()",
        through_gap,
    ),
    Mutation(
        "weights depend on the student although the gradient is stopped",
        *(objective.Objective, "_log_weights"),
        "seen = snapshot.detach() if self.held else snapshot",
        "seen = snapshot",
        stored_gap,
    ),
    Mutation(
        "first momentum buffer mu g",
        *(MomentumSGD, "step"),
        "torch.add(g, velocity[name] * h.momentum)",
        "torch.add(g if velocity[name].any() else g * h.momentum, velocity[name] * h.momentum)",
        first_step_gap,
    ),
    Mutation(
        "first momentum buffer detached, as in torch.optim",
        *(MomentumSGD, "step"),
        "torch.add(g, velocity[name] * h.momentum)",
        "torch.add(g if velocity[name].any() else g.detach(), velocity[name] * h.momentum)",
        first_step_gap,
    ),
    Mutation(
        "dropout drawn anew in the replay",
        *(objective.Objective, "replay"),
        "replayed(part.generators)",
        "replayed(None)",
        dropout_gap,
    ),
    Mutation(
        "window replayed in another mode",
        *(objective.Objective, "replay"),
        "self.student.in_modes(part.modes)",
        "self.student.in_modes(tuple(not flag for flag in part.modes))",
        switched_mode_gap,
    ),
    Mutation(
        "validation in the other mode",
        *(Validation, "gradient"),
        "untouched():",
        "untouched(), student.in_modes(tuple(not flag for flag in student.modes())):",
        dropout_gap,
    ),
    Mutation(
        "replay on the present instead of the recorded buffers",
        *(objective.Objective, "replay"),
        "part.buffers",
        "self.student.buffers()",
        running_gap,
    ),
    Mutation(
        "replay moves the module's own buffers",
        *(student.Student, "_functional"),
        "tensors = {**params, **held, **used}",
        "tensors = params",
        buffers_gap,
    ),
    Mutation(
        "replay moves the recorded buffers",
        *(student.Student, "_functional"),
        "leaf.clone()",
        "leaf",
        repeated_gap,
    ),
    Mutation(
        "lookahead uphill",
        *(lookahead_module.Lookahead, "gradient"),
        "rule.step(state, gradient, hyper)",
        "rule.step(state, {n: -g for n, g in gradient.items()}, hyper)",
        lookahead_gap,
    ),
    Mutation(
        "lookahead validated at the present parameters",
        *(lookahead_module.Lookahead, "gradient"),
        "validation.gradient(later.theta)",
        "validation.gradient(theta)",
        lookahead_gap,
    ),
]


def mutate(monkeypatch: pytest.MonkeyPatch, mutation: Mutation) -> None:
    function = inspect.getattr_static(mutation.owner, mutation.name)
    source = textwrap.dedent(inspect.getsource(function))
    assert mutation.old in source, f"{mutation.name} no longer holds {mutation.old!r}"
    space: dict[str, Any] = {}
    exec(source.replace(mutation.old, mutation.new), function.__globals__, space)
    monkeypatch.setattr(mutation.owner, mutation.name, space[mutation.name])


def caught(monkeypatch: pytest.MonkeyPatch, oracle: Callable[[], float]) -> bool:
    """Whether the comparison fails, with the engine's own guards switched off."""
    monkeypatch.setattr(guards, "check_movement", lambda *_: None)
    monkeypatch.setattr(guards, "compare_losses", lambda *_: None)
    monkeypatch.setattr(guards, "examine_gradients", lambda *_, **__: None)
    monkeypatch.setattr(StepExamination, "due", lambda *_: False)
    return not oracle() < TOLERANCE["mutant"]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.title.replace(" ", "-"))
def test_mutation_is_caught(monkeypatch: pytest.MonkeyPatch, mutation: Mutation) -> None:
    assert mutation.oracle() < TOLERANCE["adjoints"]
    mutate(monkeypatch, mutation)
    assert caught(monkeypatch, mutation.oracle)


def reverse_over_forward(self: objective.Linearised, along: Params) -> tuple[Params, Params]:
    """`Linearised.pull_back` by func.grad(func.jvp), wrong through norm layers."""
    along = {name: leaf.detach() for name, leaf in along.items()}
    assert isinstance(self.respond, partial)
    within, step = self.respond.func.__self__, REPLAYED[-1]  # type: ignore[attr-defined]

    def value(theta: Params, weights: Tensor) -> Tensor:
        return weights @ within.replay(theta, step).losses

    def slope(theta: Params, weights: Tensor) -> Tensor:
        return torch.func.jvp(lambda t: value(t, weights), (theta,), (along,))[1]

    theta = {name: leaf.detach() for name, leaf in self.theta.items()}
    curvature, slopes = torch.func.grad(slope, (0, 1))(theta, self.leaf.detach())
    return curvature, self.respond(slopes)


REPLAYED: list[Step] = []
"""The steps that were linearised, the last one at last."""


def remembering(
    self: objective.Objective, theta: Params, snapshot: Any, omega: Params, step: Step, **kind: Any
) -> objective.Linearised:
    REPLAYED.append(step)
    return linearise(self, theta, snapshot, omega, step, **kind)


linearise = objective.Objective.linearise


@pytest.mark.parametrize("name, right", [("mlp", True), ("layernorm", False), ("batchnorm", False)])
def test_reverse_over_forward_is_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, right: bool
) -> None:
    """The mutant agrees without a norm layer, so it is the mode that errs."""
    assert gap(name, dt.Stored, window=4) < TOLERANCE["adjoints"]
    monkeypatch.setattr(objective.Objective, "linearise", remembering)
    monkeypatch.setattr(objective.Linearised, "pull_back", reverse_over_forward)
    assert caught(monkeypatch, lambda: gap(name, dt.Stored, window=4)) is not right


def test_rate_read_after_the_step_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler between the step and the meta-gradient must not change recorded rates."""

    def late(self: LookBack, steps: list[Step], *rest: Any) -> adjoint.MetaGradient:
        now = self.recorder.hyper(self.recorder.parameters())
        return original(self, [replace(step, hyper=now) for step in steps], *rest)

    original = LookBack.__call__
    assert stored_gap() < TOLERANCE["adjoints"]
    monkeypatch.setattr(LookBack, "__call__", late)
    assert caught(monkeypatch, stored_gap)
