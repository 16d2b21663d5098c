"""What a replay must repeat: recorded losses, the movement of the states, untouched tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from deepteach.core.checks.examination import (
    DIFFERENCES,
    EITHER,
    SECOND,
    Examined,
    Findings,
    findings_of,
    looks_again,
)
from deepteach.core.objective import Objective
from deepteach.core.optim import Rule, State
from deepteach.core.record import Step
from deepteach.core.validation import Validation
from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError, ReplayError
from deepteach.shards import anywhere, own
from deepteach.tree import Params, norm, tree_map

LEAST_MIXED_TOLERANCE = 0.01
"""Half precision is off by more than the replays' usual tolerance."""

LARGE = 1e3
"""Inputs or losses above it are named as a cause where losses do not repeat."""


class Gap:
    """What lies between a state that was `reached` and the one that it should be, `end`."""

    def __init__(self, reached: Params, end: Params) -> None:
        self.end, self.apart = end, tree_map(torch.sub, reached, end)
        self.error, self.size = norm(self.apart), norm(end)

    @property
    def drift(self) -> float:
        """The error, relative to the size of `end`."""
        return self.error / max(self.size, 1e-300)


def check_movement(
    start: Params,
    gap: Gap,
    slack: float,
    rounding: Callable[[], Params] | None = None,
    allowed: str = "",
) -> None:
    """A `gap` must be within `slack` of the movement from `start`, and the rounding of theta.

    The drift tolerance alone is relative to theta and would not see an added loss term at a
    small learning rate. `rounding` says by how much each entry of what was reached may be off
    anyway; it is asked only where that decides. `allowed` is that in words.
    """
    movement, error = norm(tree_map(torch.sub, gap.end, start)), gap.error
    eps = max((torch.finfo(leaf.dtype).eps for leaf in gap.end.values()), default=0.0)
    bound = slack * movement + 100 * eps * gap.size
    if not error <= bound and rounding is not None:
        least = rounding()
        error = norm(tree_map(lambda off, by: (off.abs() - by).clamp(min=0), gap.apart, least))
    if not error <= bound:
        raise ReplayError(
            f"the recorded steps do not connect the student's states (off by {error:.1e} of a "
            f"movement of {movement:.1e}{allowed}): something besides coach.loss and the optimizer "
            "changed the student, such as an added loss term or a parameter update outside "
            "optimizer.step()",
            off=error / max(movement, 1e-300),
        )


def check_step(
    rule: Rule,
    held: State,
    gradient: Params,
    taken: Step,
    end: Params,
    slack: float,
    before: Callable[[], Params | None] = lambda: None,
) -> None:
    """A step of `rule` as it was `taken` from the state `held` must lead to `end`.

    Where a gradient is 0 but for rounding, as that of the keys' bias in attention always is, and of
    a bias before a normalisation, Adam makes a step of that rounding, which no replay repeats. So
    entries may be off by what their gradient's rounding does to the step: of float32, or of the
    half precision that the step's passes ran in. What else moves such an entry by no more than
    that, a step or two of Adam where the gradient is smaller than its rounding, is not seen here.
    `before` says how far `held` itself may be off for that reason, where that decides.
    """
    reached, half = rule.step(held, gradient, taken.hyper).theta, _coarsest(taken)
    words = "" if half is None else f", of which {slack:g} is allowed beside the rounding of {half}"

    def rounding() -> Params:
        found = step_rounding(rule, held, gradient, taken, reached)
        off = before()
        return found if off is None else tree_map(torch.add, found, off)

    check_movement(held.theta, Gap(reached, end), slack, rounding, words)


def step_rounding(
    rule: Rule, held: State, gradient: Params, taken: Step, reached: Params
) -> Params:
    """How far the parameters `reached` by a step may be off for the rounding of its gradient."""
    size = norm(gradient) / max(sum(leaf.numel() for leaf in gradient.values()), 1) ** 0.5
    half = _coarsest(taken)
    changes = {name: _rounding_of(leaf, size, half) for name, leaf in gradient.items()}
    found = {name: torch.zeros_like(leaf) for name, leaf in reached.items()}
    for shifted in (torch.add, torch.sub):
        other = rule.step(held, tree_map(shifted, gradient, changes), taken.hyper).theta
        off = tree_map(lambda left, right: (left - right).abs(), other, reached)
        found = tree_map(torch.maximum, found, off)
    return found


HALF_ROUNDINGS = 3
"""A gradient's entry of a pass in half precision is off by so many roundings of the mean entry."""


def _coarsest(step: Step) -> torch.dtype | None:
    """The half precision that passes of a step ran in; None where all ran as they are replayed."""
    found = [seen.half for seen in step.passes if seen.half is not None]
    return max(found, key=lambda half: torch.finfo(half).eps, default=None)


def _rounding_of(gradient: Tensor, scale: float, half: torch.dtype | None) -> Tensor:
    """The rounding of a gradient's entries, where their root mean square is `scale`.

    What a batch does not reach is 0, and repeats so.
    """
    size = 100 * torch.finfo(gradient.dtype).eps * scale
    if half is not None:
        size = max(size, HALF_ROUNDINGS / 2 * torch.finfo(half).eps * scale)
    nothing = not anywhere(not bool((own(gradient).abs() <= size).all()), (gradient,))
    reached = torch.ones_like(gradient) if nothing else (gradient != 0).to(gradient.dtype)
    return size * reached


def replay_error(losses: Tensor, step: Step, ranks: Ranks) -> float:
    """How far the losses of a replayed pass are from those recorded, relatively; of all ranks."""
    recorded = step.snapshot.losses
    error = float((losses - recorded).abs().max() / (1 + recorded.abs().mean()))
    return error if ranks.count == 1 else float(ranks.table(error).max())


def compare_losses(losses: Tensor, step: Step, tolerance: float, objective: Objective) -> None:
    """A replayed pass must repeat its losses, or it saw something else than the first.

    All ranks raise, or none. What float32's rounding needs is too wide for float64.
    """
    fine = losses.dtype == torch.float64 and tolerance < LEAST_MIXED_TOLERANCE
    least = min(tolerance, 1e-6) if fine else tolerance
    refuse_replay(replay_error(losses, step, objective.ranks), least, step, objective)


def refuse_replay(error: float, tolerance: float, step: Step, objective: Objective) -> None:
    """Raises ReplayError where a `replay_error` is beyond the tolerance, or no number."""
    if not error <= tolerance:
        if objective.student.compiled and _drew_by_inductor(step):
            raise ReplayError(
                f"replaying a step gave other losses than the first pass (by {error:.1e}): "
                "compiled code draws other random numbers (dropout) than the student as it is "
                "written, as which it is replayed: set torch._inductor.config.fallback_random = "
                "True before the first pass",
                off=error,
            )
        size = _largest(step)
        scale = (
            f", or its inputs or losses, of up to {size:.1e}, are so large that rounding shows: "
            "scale them, or lower the learning rate"
        )
        raise ReplayError(
            f"replaying a step gave other losses than the first pass (by {error:.1e}): the "
            "student is not deterministic (randomness outside torch's generators?), or was changed "
            "since (a hook, a rate of dropout, a temperature: set it right after coach.update), "
            "or its inputs were changed in place after coach.loss, or a loss was added to it"
            + (scale if size > LARGE else ""),
            off=error,
        )


def _drew_by_inductor(step: Step) -> bool:
    """Whether random numbers of a compiled pass may be its own: those of torch's usual backend."""
    config = sys.modules.get("torch._inductor.config")
    own = config is not None and not config.fallback_random
    return own and any(seen.generators is not None for seen in step.passes)


def _largest(step: Step) -> float:
    """The largest size of a number among the inputs and the losses of a step."""
    found: list[Any] = [step.snapshot.losses]
    for inputs in (seen.inputs for seen in step.passes):
        if isinstance(inputs, Tensor):
            found.append(inputs)
        else:
            found += inputs.values() if isinstance(inputs, Mapping) else inputs
    floats = [x for x in found if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
    return max(float(x.detach().abs().max()) for x in floats)


@contextmanager
def kept_intact() -> Iterator[None]:
    """Say in the user's terms that a shared pass's batch was changed before the update."""
    try:
        yield
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise ReplayError(
            "a tensor of a recorded step was changed in place after coach.loss: give each batch "
            "tensors of its own, and leave the student's buffers alone"
        ) from None


def examine_gradients(
    objective: Objective,
    examined: Examined,
    theta: Params,
    steps: Sequence[Step],
    validation: Validation,
    derivative: str,
) -> None:
    """Are the gradients that the student is trained with those of its losses?

    Asked at first, after every change of the module's layers, modes and hooks, and ever more
    rarely in between. Over one step, what changes them is crossed exactly by reverse mode; the
    validation loss must have its own gradient in any case. Asked of parameters that the steps
    move: others, that get no gradient, are constants of the window.

    Args:
        objective: whose student it is.
        examined: what was found before; gets what is found now.
        theta: the student's parameters.
        steps: recorded, oldest first; samples of the newest are asked.
        validation: the trusted batch, whose samples are asked as well.
        derivative: what the adjoint takes: DIFFERENCES of losses, EITHER mode over one step,
            REVERSE over one step, or the SECOND over several.

    Raises:
        ConfigError: they are not.
    """
    examined.about((objective.student.structure(), derivative))
    examined.sweeps += 1
    to_ask, moved, without_gradient = examined.unasked(steps)
    if moved and (to_ask or looks_again(examined.sweeps)):
        theta, any_of = objective.gathered(theta), objective.ranks.any
        theta = {name: leaf for name, leaf in theta.items() if name in moved}
        found = Findings()
        for step in {id(step): step for step in (steps[-1], *to_ask)}.values():
            found &= findings_of(objective, theta, step, validation, derivative)
        found = Findings(*(not any_of(not flag) for flag in astuple(found)))
        examined.learn(found, moved, without_gradient)
        objective.forward_mode, objective.uncut = found.forward, False
    found = examined.findings
    known = found.derived or derivative == DIFFERENCES
    if not found.finite:
        raise ConfigError(NO_NUMBER)
    if not known and not (derivative == EITHER and found.forward):
        raise ConfigError(
            "the student's gradients cannot be differentiated as its training takes them (a hook "
            "or a backward pass that detaches or clips, an embedding with scale_grad_by_freq): "
            "remove it"
        )
    if objective.student.surrogate:
        return
    changed = BY_FORWARD if objective.student.own_gradients.taken else CHANGED
    if derivative in (DIFFERENCES, SECOND) and not found.true:
        raise ConfigError(
            f"{changed}, so that second derivatives are not those of its training: "
            f"remove it, use window=1, or {ACCEPT}"
        )
    if not found.checked:
        raise ConfigError(
            f"{changed} where the validation loss is computed, too: remove it, switch it off in "
            f"eval mode and call module.eval() before the update, or {ACCEPT}"
        )


CHANGED = (
    "something changes the student's gradients on their way back (a hook, a gradient reversal, a "
    "part that is detached or runs under torch.no_grad(), a straight-through estimate, a backward "
    "pass of its own, the padding_idx of an embedding whose weights are used elsewhere, too)"
)
NO_NUMBER = (
    "torch's second derivative of an operation of the student is no finite number where its first "
    "one is (a root, power or sinc of exactly 0, as in a row of zeros): add a small number to "
    "what it is taken of"
)
BY_FORWARD = (
    "the student's forward takes gradients itself, of operations whose further derivatives torch "
    "does not know (a normalisation), or without create_graph=True"
)
ACCEPT = "take them as they are by dt.Student(surrogate=True)"
