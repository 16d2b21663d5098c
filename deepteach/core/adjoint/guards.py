"""What a replay must repeat: recorded losses, the movement of the states, untouched tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from deepteach.core.objective import Objective
from deepteach.core.record import Step
from deepteach.errors import ConfigError, ReplayError
from deepteach.tree import Params, norm, tree_map


def check_movement(start: Params, end: Params, reached: Params, slack: float) -> None:
    """`reached` must be `end`, to within `slack` of the movement and the rounding of theta.

    The drift tolerance alone is relative to theta and would not see an added loss term at a
    small learning rate.
    """
    movement = norm(tree_map(torch.sub, end, start))
    error = norm(tree_map(torch.sub, reached, end))
    eps = max((torch.finfo(leaf.dtype).eps for leaf in end.values()), default=0.0)
    if not error <= slack * movement + 100 * eps * norm(end):
        raise ReplayError(
            f"the recorded steps do not connect the student's states (off by {error:.1e} of a "
            f"movement of {movement:.1e}): something besides coach.loss and the optimizer "
            "changed the student, such as an added loss term or a parameter update outside "
            "optimizer.step(); or, where steps are undone, rounding lost them: use adjoint=Stored()"
        )


def compare_losses(losses: torch.Tensor, step: Step, tolerance: float) -> None:
    """A replayed pass must repeat its losses, or it saw something else than the first."""
    recorded = step.snapshot.losses
    error = float((losses - recorded).abs().max() / (1 + recorded.abs().mean()))
    if not error <= tolerance:
        raise ReplayError(
            f"replaying a step gave other losses than the first pass (by {error:.1e}): the "
            "student is not deterministic (randomness outside torch's generators?), or its "
            "inputs were changed in place after coach.loss; or, where steps are undone, the "
            "recovered state is too far off: use adjoint=Stored()"
        )


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
    objective: Objective, theta: Params, step: Step, along: Params, window: int
) -> None:
    """Are the gradients that the student is trained with those of its losses?

    Hooks, reversed gradients and a backward pass of the user's own change them on their way
    back. Forward mode passes that by, and torch's second derivative applies it twice, both in
    silence. So the slopes of the losses are compared, by forward and by reverse mode, once
    for each structure of the module: where they differ, one step is crossed by reverse mode,
    which is exact there, and several are refused.

    Raises:
        ConfigError: changed gradients in a window of several steps.
    """
    structure = objective.student.structure()
    if objective.examined_structure != structure:
        objective.examined_structure = structure
        objective.faithful = _faithful(objective, theta, step, along)
    if not objective.faithful:
        objective.forward_mode = False
        if window > 1:
            raise ConfigError(
                "something changes the student's gradients on their way back (a hook, a gradient "
                "reversal, a backward pass of its own), so that second derivatives are not those "
                "of its training: remove it, or use window=1"
            )


def _faithful(objective: Objective, theta: Params, step: Step, along: Params) -> bool:
    """Whether both modes say the same slopes; True where there is no forward mode to ask."""
    try:
        slopes = objective.slopes(theta, step, along)
    except (NotImplementedError, RuntimeError):
        return True
    found = objective.slopes_by_reverse(theta, step, along)
    slack = 1e-2 if found.dtype != torch.float64 else 1e-7

    def apart(one: Tensor) -> bool:
        error = torch.linalg.vector_norm(found - one)
        return not error <= slack * torch.linalg.vector_norm(found) + 1e-30

    # A pass that does not repeat itself is found, and worded, by the replays.
    return not apart(slopes) or apart(objective.slopes_by_reverse(theta, step, along))
