"""What settings, method and optimizer leave open between them is settled here, once."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from deepteach.core.accuracy import slopes_at
from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.adjoint.registry import ADJOINTS
from deepteach.core.adjoint.reversed import Reversed
from deepteach.core.adjoint.stored import Stored
from deepteach.core.coach import Coach
from deepteach.core.graph_memory import Graphs
from deepteach.core.losses import VALIDATION_LOSSES, SampleLoss, ValidationLoss, refuse_shape
from deepteach.core.optim import rule_for
from deepteach.core.predict import device_of, evaluating
from deepteach.data.dataset import Data
from deepteach.errors import ConfigError, DeepTeachError
from deepteach.names import brief, known
from deepteach.rng import replayed
from deepteach.teachers.method import Method, MethodContext
from deepteach.training.config import METHODS_OWN, Config

WANTED_UPDATES = 200
"""Teacher updates that a run should have; the paper's K = 20 where it is long enough."""

TRIED = 8
"""Samples on which it is tried whether a method can read the labels."""

TRIED_DRAWS = 64
"""Calls on which they are tried by a loss that draws random numbers."""

MIXED_TOLERANCE = 0.1
"""How far a replay in full precision may be from a step in half precision."""


def usual_interval(steps: int, least: int = 1) -> int:
    """The interval K of a training of so many steps, where nothing else is asked for."""
    return max(least, min(20, steps // WANTED_UPDATES))


def settle_pace(config: Config, chosen: Method, steps: int, *, leads: bool) -> tuple[int, int]:
    """(interval K, window B) of a run of `steps` steps.

    One that `leads` follows the settings, then its method; one beside it the other way round.
    An interval that is not asked for is at least the window that is.
    """
    interval, window = config.interval, config.window
    if not leads or interval is None:
        interval = chosen.interval or interval or usual_interval(steps, window or 1)
        interval = max(interval, window or 1) if leads else interval
    if not leads or window is None:
        window = min(chosen.window or window or 2, interval)
    return interval, window


def settle_context(config: Config, data: Data, width: int, steps: int) -> MethodContext:
    """The run as a recipe sees it."""
    labels, group = data.y_train, data.group
    sources = () if group is None else group.bincount(minlength=len(data.group_names)).tolist()
    return MethodContext(
        data.task.classes,
        width,
        steps,
        config.seed,
        config.teacher_from,
        counts=tuple(data.task.counts(labels).tolist()),
        trusted_counts=tuple(data.task.counts(data.y_valid).tolist()),
        samples=len(labels),
        group_counts=tuple(sources),
        task=data.task,
    )


def refuse_unread(coach: Coach, data: Data, chosen: Method, name: str) -> None:
    """Try a method on a few trusted samples whose labels are no class numbers.

    Raises:
        ConfigError: it cannot read them; before anything is trained, and with one that can.
    """
    task = data.task
    if task.indices:
        return
    reason = "it reads class numbers" if chosen.curriculum.reads_classes else None
    teacher, device = copy.deepcopy(coach.teacher), device_of(coach.student.module)
    x = data.x_valid[:TRIED].to(device)
    y = task.learned(data.y_valid[:TRIED]).to(device)
    group = None if data.group is None else torch.zeros(len(y), dtype=torch.int64, device=device)
    index = torch.arange(len(y), device=device)
    try:
        with evaluating(coach.student.module), replayed(None):
            snapshot = coach.look(x, y, index=index, group=group)
            teacher.fit(snapshot)
            teacher.log_trust(snapshot)
            if teacher.shapes_loss:
                teacher.sample_losses(snapshot.logits, snapshot, coach.objective.loss)
    except ConfigError as error:
        reason = str(error)
    if reason is not None:
        raise ConfigError(
            f"method {name} does not serve task {task.name}{task.of}: use deep, mwn or uniform "
            f"({reason})"
        )


def read_by(loss: SampleLoss, name: str | None, data: Data, outputs: torch.Tensor) -> Data:
    """The data, whose task knows how a loss of the user's own reads the student's outputs.

    The loss is tried on `outputs` `(b, ...)`, those of the first trusted samples, of which there
    are at most `TRIED`.

    Raises:
        ConfigError: it raises, returns no floats, or does not say what a prediction is; before
            anything is trained.
    """
    y = data.task.learned(data.y_valid[: len(outputs)]).to(outputs.device)
    wanted = "expected a function of (logits, y) that returns one value a sample, as floats"
    try:
        with replayed(None):
            found: object = loss(outputs.detach().requires_grad_(), y)
    except DeepTeachError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"loss {name!r} failed ({brief(error)[:200]}): {wanted}") from error
    if not isinstance(found, torch.Tensor):
        raise ConfigError(f"loss {name!r} returned type {type(found).__name__}: {wanted}")
    if not found.is_floating_point():
        raise ConfigError(f"loss {name!r} returned a tensor of {found.dtype}: {wanted}")
    refuse_shape(found, outputs, y, len(y), f"loss {name!r}")

    def slope(z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses, found = slopes_at(loss, z, labels, TRIED_DRAWS)
        return torch.full_like(z, torch.nan) if losses is None else found

    task = data.task.read_by(slope, outputs, y)
    if task is None:
        raise ConfigError(
            f"loss {name!r} does not tell what a prediction is, so accuracy and predictions would "
            f"be wrong: let an output of the student be {data.task.answers}"
        )
    return replace(data, task=task)


def settle_adjoint(
    config: Config, chosen: Method, optimizer: torch.optim.Optimizer
) -> tuple[AbstractAdjoint, tuple[str, ...]]:
    """The adjoint, and a note where it follows from the optimizer or the precision.

    First the settings', then the method's, then the teacher's own; else steps are undone
    (`Reversed`), or their states kept (`Stored`) where they cannot be.
    """
    half, reason = config.precision != "float32", None
    if config.adjoint != METHODS_OWN:
        own = known("adjoint", config.adjoint, ADJOINTS)()
    else:
        own = chosen.adjoint or chosen.teacher.default_adjoint()
    if own is None:
        own, reason = usual_adjoint(optimizer, half)
    learns = any(leaf.requires_grad for leaf in chosen.teacher.parameters())
    notes = (f"adjoint stored: {reason}",) if reason and learns else ()
    return with_options(own, half, config.micro_batch, config.graphs), notes


def with_options(
    adjoint: AbstractAdjoint, half: bool, micro_batch: int | None = None, graphs: Graphs = 0
) -> AbstractAdjoint:
    """The adjoint with what settings ask of it; `half`: steps are in half precision."""
    if not (half or micro_batch or graphs):
        return adjoint
    return adjoint.configured(
        tolerance=max(adjoint.tolerance, MIXED_TOLERANCE) if half else None,
        micro_batch=micro_batch,
        mixed_precision=half,
        graphs=graphs or None,
    )


def usual_adjoint(
    optimizer: torch.optim.Optimizer, half: bool
) -> tuple[AbstractAdjoint, str | None]:
    """Steps are undone; or their states are kept, for the reason told."""
    reason = _why_not_undone(optimizer, half)
    return Reversed(fallback=True) if reason is None else Stored(), reason


def _why_not_undone(optimizer: torch.optim.Optimizer, half: bool) -> str | None:
    """Why the steps of this training cannot be undone, or None where they can."""
    if half:
        return "the gradients of steps in half precision are not found again in full precision"
    rule = rule_for(optimizer)
    if not rule.linear:
        # Adam's second moment is a difference of near equals in the first steps.
        return f"steps of {type(optimizer).__name__} are undone only roughly in float32"
    reasons = (rule.refuse_reversal(rule.hyper(group, {})) for group in optimizer.param_groups)
    return next((reason for reason in reasons if reason), None)


def settle_validation(
    config: Config, chosen: Method, loss: SampleLoss | None, *, of_probabilities: bool = False
) -> str | ValidationLoss:
    """What the teacher lowers: the settings', then the method's, then the loss of the student.

    A loss of the user's own is validated by its mean, never by a cross-entropy that the
    labels may not fit.

    Raises:
        ConfigError: one by name, which reads logits, where outputs are probabilities.
    """
    own = config.validation_loss
    name = chosen.validation_loss if own == METHODS_OWN else own
    if name is not None:
        found = known("validation_loss", name, VALIDATION_LOSSES)
        if of_probabilities:
            raise ConfigError(
                f"validation_loss {name} reads logits, and by loss {config.loss!r} the student's "
                "outputs are probabilities: return logits, or use deep, mwn or uniform without it"
            )
        return found
    if loss is None:
        return VALIDATION_LOSSES["nll"]
    return lambda logits, labels: loss(logits, labels).mean()
