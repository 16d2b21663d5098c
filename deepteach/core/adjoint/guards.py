"""What a replay must repeat: recorded losses, the movement of the states, untouched tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from deepteach.core.examination import (
    DIFFERENCES,
    EITHER,
    SECOND,
    Findings,
    findings_of,
    looks_again,
    slopes_are_true,
)
from deepteach.core.objective import Objective
from deepteach.core.optim import Hyper, Rule, State
from deepteach.core.record import Step
from deepteach.core.validation import Validation
from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError, ReplayError
from deepteach.shards import anywhere, own
from deepteach.tree import Params, norm, tree_map

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
    start: Params, gap: Gap, slack: float, rounding: Callable[[], Params] | None = None
) -> None:
    """A `gap` must be within `slack` of the movement from `start`, and the rounding of theta.

    The drift tolerance alone is relative to theta and would not see an added loss term at a
    small learning rate. `rounding` says by how much each entry of what was reached may be off
    anyway; it is asked only where that decides.
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
            f"movement of {movement:.1e}): something besides coach.loss and the optimizer "
            "changed the student, such as an added loss term or a parameter update outside "
            "optimizer.step()",
            off=error / max(movement, 1e-300),
        )


def check_step(
    rule: Rule, held: State, gradient: Params, hyper: dict[str, Hyper], end: Params, slack: float
) -> None:
    """A step of `rule` from the state `held` must lead to `end`.

    Where a gradient is 0 but for rounding, as that of the keys' bias in attention always is, Adam
    makes a step of that rounding, which no replay repeats.
    """
    reached = rule.step(held, gradient, hyper).theta

    def rounding() -> Params:
        count = max(sum(leaf.numel() for leaf in gradient.values()), 1)
        scale = 100 * norm(gradient) / count**0.5
        changes = {name: _rounding_of(leaf, scale) for name, leaf in gradient.items()}
        found = {name: torch.zeros_like(leaf) for name, leaf in reached.items()}
        for shifted in (torch.add, torch.sub):
            other = rule.step(held, tree_map(shifted, gradient, changes), hyper).theta
            off = tree_map(lambda left, right: (left - right).abs(), other, reached)
            found = tree_map(torch.maximum, found, off)
        return found

    check_movement(held.theta, Gap(reached, end), slack, rounding)


def _rounding_of(gradient: Tensor, scale: float) -> Tensor:
    """The rounding of a gradient's entries. What a batch does not reach is 0, and repeats so."""
    size = scale * torch.finfo(gradient.dtype).eps
    nothing = not anywhere(not bool((own(gradient).abs() <= size).all()), (gradient,))
    reached = torch.ones_like(gradient) if nothing else (gradient != 0).to(gradient.dtype)
    return size * reached


def replay_error(losses: Tensor, step: Step, ranks: Ranks) -> float:
    """How far the losses of a replayed pass are from those recorded, relatively; of all ranks."""
    recorded = step.snapshot.losses
    error = float((losses - recorded).abs().max() / (1 + recorded.abs().mean()))
    return error if ranks.count == 1 else float(ranks.table(error).max())


def compare_losses(losses: Tensor, step: Step, tolerance: float, ranks: Ranks) -> None:
    """A replayed pass must repeat its losses, or it saw something else than the first.

    All ranks raise, or none.
    """
    refuse_replay(replay_error(losses, step, ranks), tolerance, step)


def refuse_replay(error: float, tolerance: float, step: Step) -> None:
    """Raises ReplayError where a `replay_error` is beyond the tolerance, or no number."""
    if not error <= tolerance:
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
    theta: Params,
    step: Step,
    validation: Validation,
    derivative: str,
) -> None:
    """Are the gradients that the student is trained with those of its losses?

    Asked at first, after every change of the module's layers, modes and hooks, and ever more
    rarely in between. Over one step, what changes them is crossed exactly by reverse mode; the
    validation loss must have its own gradient in any case.

    Args:
        objective: remembers what was found.
        theta: the student's parameters.
        step: a recorded step, whose samples are asked.
        validation: the trusted batch, whose samples are asked as well.
        derivative: what the adjoint takes: DIFFERENCES of losses, EITHER mode over one step,
            REVERSE over one step, or the SECOND over several.

    Raises:
        ConfigError: they are not.
    """
    structure = (objective.student.structure(), derivative)
    objective.sweeps += 1
    if objective.examined_as != structure or looks_again(objective.sweeps):
        theta, any_of = objective.gathered(theta), objective.ranks.any
        found = findings_of(objective, theta, step, derivative)
        checked = slopes_are_true(objective, theta, validation)
        objective.findings = Findings(
            *(not any_of(not flag) for flag in (found.true, found.derived, found.forward, checked))
        )
        objective.forward_mode = objective.findings.forward
        objective.examined, objective.examined_as = False, structure
    found = objective.findings
    known = found.derived or derivative == DIFFERENCES
    if not known and not (derivative == EITHER and found.forward):
        raise ConfigError(
            "the student's gradients cannot be differentiated as its training takes them (a hook "
            "or a backward pass that detaches or clips, an embedding with scale_grad_by_freq): "
            "remove it"
        )
    if objective.student.surrogate:
        return
    if derivative in (DIFFERENCES, SECOND) and not found.true:
        raise ConfigError(
            f"{CHANGED}, so that second derivatives are not those of its training: "
            f"remove it, use window=1, or {ACCEPT}"
        )
    if not found.checked:
        raise ConfigError(
            f"{CHANGED} where the validation loss is computed, too: remove it, switch it off in "
            f"eval mode and call module.eval() before the update, or {ACCEPT}"
        )


CHANGED = (
    "something changes the student's gradients on their way back (a hook, a gradient reversal, a "
    "detached part, a straight-through estimate, a backward pass of its own)"
)
ACCEPT = "take them as they are by dt.Student(surrogate=True)"
