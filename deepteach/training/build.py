"""From a configuration and data to finished objects: the one place where a training is made.

`student` comes first, for all runs of a configuration share it; `training` makes the rest in
the order in which the parts need one another. Nothing is changed once it is made.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.coach import Coach
from deepteach.core.predict import evaluating
from deepteach.core.student import Outputs, Student, last_linear, refuse_lazy
from deepteach.core.teacher import AbstractTeacher
from deepteach.data import augment
from deepteach.data.dataset import Data
from deepteach.distributed.collectives import Ranks, refuse_sharded
from deepteach.errors import ConfigError, DeepTeachError
from deepteach.models import build
from deepteach.names import brief
from deepteach.rng import replayed
from deepteach.teachers.curriculum import Curriculum
from deepteach.teachers.method import Method
from deepteach.teachers.registry import method
from deepteach.training.averaged import MovingAverage
from deepteach.training.choices import (
    OptimizerOf,
    Overrides,
    loss_of,
    optimizer_of,
)
from deepteach.training.config import Config
from deepteach.training.device_data import DeviceData
from deepteach.training.loop import TrainingLoop
from deepteach.training.schedule import Rates, Schedule, refuse_large_batches, steps_per_epoch
from deepteach.training.settle import (
    TRIED,
    read_by,
    refuse_unread,
    settle_adjoint,
    settle_context,
    settle_pace,
    settle_validation,
)
from deepteach.training.step import StepRule
from deepteach.training.transfer import adopt


@dataclass(frozen=True)
class Built:
    """A training that is ready to begin."""

    loop: TrainingLoop
    copied: Callable[[AbstractAdjoint, int], Coach]
    """`(adjoint, window)` to a coach on copies of what the loop trains, as it is then."""
    rehearsal: Callable[[AbstractTeacher | None, int], TrainingLoop]
    """`(teacher, interval)` to a loop on such copies: the method's teacher for None."""
    notes: tuple[str, ...] = ()
    """What was decided for the user, a line each."""


def student(config: Config, data: Data, module: nn.Module | None = None) -> tuple[nn.Module, str]:
    """The module (made by name unless given) and the layer whose input the teacher reads."""
    layer = None
    if module is None:
        name = config.student
        if name == "auto":
            name = "cnn" if data.is_image else "mlp"
        module, layer = build(name, data.input_shape, data.task.outputs, config.seed)
    if not isinstance(module, nn.Module):
        kind = module.__name__ if isinstance(module, type) else type(module).__name__
        raise ConfigError(
            f"model is {kind}, which is no module: give an nn.Module, as {kind}(...), or the name "
            "of a student"
        )
    refuse_sharded(dict(module.named_parameters()))
    chosen = config.internal or layer or last_linear(module)
    if not chosen:
        raise ConfigError(
            "the student has no named linear layer to read the internal state from: name a "
            "submodule with internal=..."
        )
    return module, chosen


def fitted(config: Config, data: Data) -> tuple[Config, tuple[str, ...]]:
    """What the settings leave to the data, and what is to be told of that.

    Images in files are augmented unless something else is asked for. The default batch size is
    lowered to the number of samples, with a warning; one that was chosen stays, to be refused
    where it is too large.
    """
    told: tuple[str, ...] = ()
    if config.augment is True and not data.is_image:
        raise ConfigError(
            f"augment true crops and mirrors images, and samples of {data.name} have shape "
            f"{data.input_shape}: leave it out, or give a function of yours"
        )
    if config.augment is None:
        chosen = augment.by_default(config.data, data.input_shape)
        config = config.model_copy(update={"augment": chosen})
        if chosen:
            told = (
                "images are cropped and mirrored at random: --augment false where left is not "
                "right, as in letters and digits",
            )
    return _lowered(config, len(data.y_train)), told


def _lowered(config: Config, count: int) -> Config:
    if "batch_size" in config.model_fields_set or config.batch_size <= count:
        return config
    warnings.warn(
        f"batch_size is lowered from {config.batch_size} to the {count} training samples",
        UserWarning,
        stacklevel=4,
    )
    return config.model_copy(update={"batch_size": count})


def training(
    config: Config,
    data: Data,
    module: nn.Module,
    layer: str,
    teacher: Any,
    overrides: Overrides,
    ranks: Ranks,
    *,
    leads: bool = True,
) -> Built:
    """Everything that one run trains with; `module` is on its device already.

    A run that `leads` takes its interval and window from the settings first; one beside it,
    where its method has no own.

    Raises:
        ConfigError: settings that do not go together, with the remedy.
    """
    torch.manual_seed(config.seed)
    if config.channels_last:
        _put_channels_last(data, module)
    wrapped = Student(module, layer)
    if config.pool != "none":
        wrapped.pool = config.pool
    step_size = config.batch_size * config.accumulate
    steps = steps_per_epoch(len(data.y_train), step_size) * config.epochs
    chosen = settle_method(config, data, wrapped, teacher, steps)
    interval, window = settle_pace(config, chosen, steps, leads=leads)
    schedule = Schedule(
        epochs=config.epochs,
        batch_size=config.batch_size,
        milestones=config.decay_epochs,
        interval=interval,
        window=window,
        valid_batch=config.valid_batch,
        shape=config.schedule,
        warmup=config.warmup,
        accumulate=config.accumulate,
    )
    return assemble(config, data, wrapped, chosen, schedule, overrides, ranks)


def _put_channels_last(data: Data, module: nn.Module) -> None:
    """In place. A convolution brings its input into the order of its weights."""
    if len(data.input_shape) != 3:
        raise ConfigError(
            f"channels_last is an order of images, and samples of {data.name} have shape "
            f"{data.input_shape}: leave it out"
        )
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def assemble(
    config: Config,
    data: Data,
    student: Student,
    chosen: Method,
    schedule: Schedule,
    overrides: Overrides,
    ranks: Ranks,
) -> Built:
    """The optimizer, the coach and the loop around a student and a method at hand."""
    refuse_large_batches(len(data.y_train), schedule.batch_size)
    device = next(student.module.parameters()).device
    make_optimizer = optimizer_of(config, overrides)
    optimizer = make_optimizer(_trained(student.module))
    teacher = chosen.teacher.to(device)
    teacher_optimizer = chosen.optimizer()
    adjoint, notes = settle_adjoint(config, chosen, optimizer)
    own_loss = loss_of(config, overrides)
    loss = own_loss or data.task.loss
    make_coach = partial(
        Coach,
        through_weights=config.through_weights,
        validation_loss=settle_validation(
            config, chosen, loss, of_probabilities=data.task.of_probabilities
        ),
        total_steps=steps_per_epoch(len(data.y_train), schedule.step_size) * schedule.epochs,
        clip_norm=config.clip_norm,
        accumulate=schedule.accumulate > 1,
        **({} if loss is None else {"loss": loss}),
    )
    coach = make_coach(
        *(student, optimizer, teacher),
        interval=schedule.interval,
        window=schedule.window,
        adjoint=adjoint,
        teacher_optimizer=teacher_optimizer,
        ranks=ranks,
    )
    refuse_unread(coach, data, chosen, config.method)
    loop = TrainingLoop(
        coach,
        DeviceData.of(data, device),
        schedule,
        Rates.of(optimizer, teacher_optimizer, follows=chosen.follows_schedule),
        curriculum=chosen.curriculum,
        seed=config.seed,
        augment=augment.resolve(config.augment, overrides.augment),
        step_rule=StepRule(config.clip_norm, config.precision),
        average=None if config.ema is None else MovingAverage(student.module, config.ema),
    )
    copied = partial(_copied, coach, make_coach, make_optimizer)
    return Built(loop, copied, partial(_rehearsal, loop, copied, chosen), notes)


def _copied(
    coach: Coach,
    make_coach: Callable[..., Coach],
    make_optimizer: OptimizerOf,
    adjoint: AbstractAdjoint | None,
    window: int,
    *,
    interval: int | None = None,
    teacher: AbstractTeacher | None = None,
) -> Coach:
    student, own = copy.deepcopy((coach.student, coach.teacher))
    student.module.train()
    optimizer = make_optimizer(_trained(student.module))
    # Copied first: an optimizer may keep the tensors that it is given.
    optimizer.load_state_dict(copy.deepcopy(coach.optimizer.state_dict()))
    return make_coach(
        *(student, optimizer, own if teacher is None else teacher),
        interval=window if interval is None else interval,
        window=window,
        adjoint=adjoint,
    )


def _rehearsal(
    loop: TrainingLoop,
    copied: Callable[..., Coach],
    chosen: Method,
    teacher: AbstractTeacher | None,
    interval: int,
) -> TrainingLoop:
    plain = teacher is not None
    adjoint = None if plain else copy.deepcopy(loop.coach.adjoint)
    window = min(1 if plain else loop.coach.window, interval)
    coach = copied(adjoint, window, interval=interval, teacher=teacher)
    return TrainingLoop(
        coach,
        loop.data,
        loop.schedule,
        Rates.of(coach.optimizer, coach.teacher_optimizer, follows=chosen.follows_schedule),
        curriculum=Curriculum() if plain else copy.deepcopy(loop.curriculum),
        seed=loop.seed,
        augment=loop.augment,
        step_rule=loop.step_rule,
        average=None if loop.average is None else copy.deepcopy(loop.average),
    )


def settle_method(config: Config, data: Data, student: Student, teacher: Any, steps: int) -> Method:
    """The teacher and how it is taught: by name, or around a teacher at hand."""
    width = state_width(student, data, config.student)
    context = settle_context(config, data, width, steps)
    chosen = method(config.method if teacher is None else teacher, context)
    if config.teacher_from is not None and list(chosen.teacher.parameters()):
        here = {"student": config.student, "data": config.data, "internal": student.internal}
        layer = last_linear(student.module)
        adopt(chosen.teacher, config.teacher_from, {**here, "width": width}, layer)
        chosen = replace(chosen, window=1)  # nothing is taught by looking back
    if config.teacher_lr is not None:
        chosen = replace(chosen, teacher_rate=config.teacher_lr)
    return chosen


def read_by_own_loss(
    config: Config, data: Data, module: nn.Module, layer: str, overrides: Overrides
) -> Data:
    """The data, with outputs of the student as a loss of the user's own reads them, if any.

    Raises:
        ConfigError: it cannot read what the student gives, or does not say what it is.
    """
    loss = loss_of(config, overrides)
    if loss is None:
        return data
    with evaluating(module), replayed(None):
        said = outputs_of(Student(module, layer), data, data.x_valid[:TRIED], config.student)
    return read_by(loss, config.loss, data, said.logits)


def state_width(student: Student, data: Data, name: str = "custom") -> int:
    """Width of the internal state."""
    return outputs_of(student, data, data.x_train[:2], name).internal.shape[1]


def outputs_of(student: Student, data: Data, inputs: Tensor, name: str = "custom") -> Outputs:
    """What it says of a few samples, by a pass that changes nothing.

    Raises:
        ConfigError: it fails, or returns logits of another shape than the labels are of.
    """
    refuse_lazy(student.module)
    device = next(student.module.parameters()).device
    try:
        with torch.no_grad():
            outputs = student.functional({}, student.buffers(), inputs.to(device))
    except DeepTeachError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"student {name!r} failed on samples of shape {data.input_shape} "
            f"({brief(error)[:200]}): make its forward pass take a batch of them"
        ) from error
    data.task.refuse_logits(outputs.logits)
    return outputs


def device(name: str) -> torch.device:
    """The device of that name, tried out; "auto" prefers CUDA."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found).tolist()  # the meta device holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError(f"device {name!r} is not available here: use auto or cpu") from None
    return found


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [leaf for leaf in module.parameters() if leaf.requires_grad]
