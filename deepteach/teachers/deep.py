"""The package's own default, the one before it, and its controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from deepteach.core.feature import Feature
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.runs.reader import open_run
from deepteach.teachers.class_shift import ClassShift, first_shift
from deepteach.teachers.controls import RandomNumbers, Shuffled, noise_gradients
from deepteach.teachers.fitted import Probe
from deepteach.teachers.frozen import Frozen, Given
from deepteach.teachers.group import Group
from deepteach.teachers.history import History
from deepteach.teachers.linear import Teacher
from deepteach.teachers.log_linear import LogLinear
from deepteach.teachers.method import Method, MethodContext, Parameters, recipe, teacher_adam
from deepteach.teachers.riding import Riding
from deepteach.teachers.trusted_probe import TrustedProbe
from deepteach.teachers.trusted_ratio import TrustedRatio
from deepteach.teachers.trusted_regression import TrustedRegression
from deepteach.teachers.trusted_set import FineTuned
from deepteach.teachers.uniform import Uniform

Control = Literal["none", "shuffled", "frozen", "random-features", "random-gradient", "untaught"]


UPDATES = 300
"""Teacher updates that a run should have: the numbers of many sources have far to go."""

Part = Literal["none", "sources", "evidence", "shifts", "riding"]

_WHOLE = ("features=probe", "control=random-features", "control=frozen")
"""What stands in the place of all parts, so that none can be left out or added."""


@recipe("deep")
def deep(
    context: MethodContext,
    features: Literal["all", "probe"] = "all",
    without: Part = "none",
    history: bool = False,
    control: Control = "none",
    fine_tune: float = 0.0,
) -> Method:
    """The default: sources, evidence on labels, class shifts, and the trusted set as a source.

    A few numbers, and those that are taught start at plain training:

    - *sources*: a number a source of the data, where sources are known;
    - *evidence*: a number for what the trusted probe says of the given label (`TrustedRatio`);
    - *shifts*: a number a logit, added to it (`ClassShift`): `first_shift`, where the classes
      exclude each other. They are not learned: taught from there on, they cost 3 points with 20
      trusted samples of ten classes, and up to 1.3 on a long tail with 300 (LOG.md);
    - *riding*: trusted samples train along (`Riding`), by turns; the others teach meanwhile.
      They count as much as a training sample on average; a taught number for them cost accuracy.

    `without` leaves one of them out, `history` adds what the student said of a sample before.
    With `features=probe` it is the former default: the trusted probe, read by a linear teacher
    (an MLP was no more accurate and ranked wrong labels far worse, LOG.md). `fine_tune` is the
    share of the epochs, the last ones, that train on the trusted set alone; it does not ride along
    before. A `control` takes one part of its signal away; if it does as well, that part did
    nothing. `random-features` reads random numbers in place of all that is read, `frozen` the
    weights of a finished run. `untaught` takes all of the meta-gradient: evidence weighs by its
    ratio of densities as it is, shifts stay at their start, sources count alike.

    Raises:
        ConfigError: two settings of which one would do nothing, or a frozen teacher without
            `teacher_from`.
    """
    if fine_tune and control != "none":
        raise ConfigError("fine_tune and control cannot be combined: choose one")
    if features == "probe" and control == "untaught":
        raise ConfigError(
            "features=probe knows nothing untaught: use the method probe, its fixed weights"
        )
    alone = "features=probe" if features == "probe" else f"control={control}"
    if (without != "none" or history) and alone in _WHOLE:
        raise ConfigError(f"{alone} reads nothing else: leave out without and history")
    if features == "probe":
        whole = _of_probe(context)
    else:
        whole = _of_parts(context, without, history, evidence=float(control == "untaught"))
    if fine_tune:
        return replace(whole, curriculum=FineTuned(fine_tune))
    match control:
        case "none":
            return whole
        case "shuffled":
            return replace(whole, teacher=Shuffled(whole.teacher, context.seed))
        case "random-features":
            random = RandomNumbers(_probe(context).width, context.seed)
            return replace(whole, teacher=Teacher([random]))
        case "random-gradient":
            return replace(whole, make_optimizer=_noisy_adam(context.seed))
        case "frozen":
            return _frozen(context.teacher_from)
        case "untaught":
            return replace(whole, teacher=whole.teacher.requires_grad_(False))


def _probe(context: MethodContext) -> Probe:
    if context.task.real_valued:
        return TrustedRegression()
    return TrustedProbe(several=not context.task.exclusive)


def _of_probe(context: MethodContext) -> Method:
    return Method(Teacher([_probe(context)]), teacher_rate=3e-2)


def _of_parts(
    context: MethodContext, without: Part, history: bool, evidence: float = 0.0
) -> Method:
    read: list[Feature] = []
    if without != "sources" and context.groups:
        count = sum(context.group_counts)
        read.append(Group(context.groups, [size / count for size in context.group_counts]))
    if without != "evidence":
        read.append(TrustedRatio(_probe(context)))
    if history:
        read.append(History())
    teacher: AbstractTeacher = LogLinear(read, evidence=evidence) if read else Uniform()
    if without != "shifts" and context.task.exclusive:
        start = first_shift(context)
        if start.any():
            teacher = ClassShift(context.task.outputs, start=start, weighing=teacher)
            teacher.shift.requires_grad_(False)
    interval = max(1, min(20, context.steps // UPDATES))
    whole = Method(teacher, teacher_rate=5e-2, window=1, interval=interval)
    return whole if without == "riding" else replace(whole, curriculum=Riding())


def _noisy_adam(seed: int) -> Callable[[Parameters, float, float], torch.optim.Optimizer]:
    def make(parameters: Parameters, rate: float, decay: float) -> torch.optim.Optimizer:
        return noise_gradients(teacher_adam(parameters, rate, decay), seed)

    return make


def _frozen(source: str | None) -> Method:
    if source is None:
        raise ConfigError(
            "control=frozen takes the weights of a finished run: name its folder with teacher_from"
        )
    given = Given()
    return Method(given, curriculum=Frozen(given, open_run(source).weights))
