"""From a configuration to objects: the student, its layer, the method, the device."""

from __future__ import annotations

import warnings
from dataclasses import replace

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from deepteach.core.adjoint.registry import ADJOINTS
from deepteach.core.student import Student
from deepteach.core.teacher import AbstractTeacher
from deepteach.data.dataset import Data
from deepteach.errors import ConfigError, DataError, DeepTeachError
from deepteach.models import build
from deepteach.runs.reader import open_run
from deepteach.teachers.method import Method, Problem
from deepteach.teachers.registry import method
from deepteach.training.config import Config


def resolve_method(
    config: Config, data: Data, student: Student, teacher: AbstractTeacher | None, steps: int
) -> Method:
    """The teacher and how it is taught: by name, or around a teacher at hand."""
    if config.pool != "none":
        student.pool = config.pool
    width = state_width(student, data, config.student)
    if teacher is not None:
        chosen = Method(teacher)
    else:
        problem = Problem(data.classes, width, steps, config.seed, config.teacher_from)
        chosen = method(config.method, problem)
    if config.teacher_from is not None and list(chosen.teacher.parameters()):
        _adopt(chosen.teacher, config, student, width)
        chosen = replace(chosen, window=1)  # nothing is taught by looking back
    if config.adjoint != "method":
        chosen = replace(chosen, adjoint=ADJOINTS[config.adjoint]())
    if config.teacher_lr is not None:
        chosen = replace(chosen, teacher_rate=config.teacher_lr)
    return chosen


def _adopt(teacher: AbstractTeacher, config: Config, student: Student, width: int) -> None:
    """Give `teacher` the parameters of a finished run's, to be kept as they are.

    Only parameters: what a teacher fits to trusted samples belongs to its student, and is
    fitted anew. Raises ConfigError where they do not fit, DataError where they are damaged.
    """
    assert config.teacher_from is not None
    source = open_run(config.teacher_from)
    path = source.path / "teacher.safetensors"
    try:
        saved = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}): train that run again") from error
    for name, leaf in teacher.named_parameters():
        found = tuple(saved[name].shape) if name in saved else None
        if found != tuple(leaf.shape):
            was = "has no such parameter" if found is None else f"has shape {found} there"
            raise ConfigError(
                f"the teacher of {source.path} ({source.method}) does not fit: {name} needs shape "
                f"{tuple(leaf.shape)}, it {was}: use the same method, classes and layer width"
            )
        leaf.data.copy_(saved[name])
        leaf.requires_grad_(False)
    states = source.samples.get("internal")
    here: dict[str, object] = {
        "student": config.student,
        "data": config.data,
        "internal": student.internal,
    }
    there = {key: source.config.get(key) for key in here}
    there["internal"] = there["internal"] or next(reversed(_linear(student.module)), None)
    here["width"], there["width"] = width, width if states is None else states.shape[1]
    changed = [f"{k} {there[k]!r} -> {v!r}" for k, v in here.items() if there[k] != v]
    if changed:
        warnings.warn(
            f"this teacher was taught elsewhere ({', '.join(changed)}): one that reads a student's "
            "own states reads coordinates that another student does not have",
            UserWarning,
            stacklevel=2,
        )


def state_width(student: Student, data: Data, name: str = "custom") -> int:
    """Width of the internal state, by a pass of two samples that changes nothing."""
    device = next(student.module.parameters()).device
    try:
        with torch.no_grad():
            outputs = student.functional({}, student.buffers(), data.x_train[:2].to(device))
    except DeepTeachError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"student {name!r} failed on samples of shape {data.input_shape} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): make its forward "
            "pass take a batch of them"
        ) from error
    if outputs.logits.dim() != 2 or outputs.logits.shape[1] < data.classes:
        raise ConfigError(
            f"the student returns logits of shape {tuple(outputs.logits.shape)} for 2 samples of "
            f"{data.classes} classes: expected (2, {data.classes})"
        )
    return outputs.internal.shape[1]


def resolve_student(
    config: Config, data: Data, module: nn.Module | None = None
) -> tuple[nn.Module, str]:
    """The module (built by name unless given) and the layer whose input the teacher reads."""
    if module is None:
        name = config.student
        if name == "auto":
            name = "cnn" if data.is_image else "mlp"
        module, internal = build(name, data.input_shape, data.classes, config.seed)
    else:
        internal = None
    chosen = config.internal or internal or _last_linear(module)
    return module, chosen


def _last_linear(module: nn.Module) -> str:
    """The last linear layer, whose input is the paper's I0."""
    found = _linear(module)
    if not found or not found[-1]:
        raise ConfigError(
            "the student has no named linear layer to read the internal state from: name a "
            "submodule with internal=..."
        )
    return found[-1]


def _linear(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]


def resolve_device(name: str) -> torch.device:
    """The device of that name, tried out; "auto" prefers CUDA."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).tolist()  # the meta device holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError(f"device {name!r} is not available here: use auto or cpu") from None
    return device
