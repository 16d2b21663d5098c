"""What all adapters share: from what a host's loop has to the coach that teaches it."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from deepteach.core.coach import Coach
from deepteach.core.given import whole_number
from deepteach.core.optim import unwrapped
from deepteach.core.student import Student, last_linear
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import CheckpointError, ConfigError
from deepteach.names import brief, known
from deepteach.runs.serialization import from_bytes, json_bytes, pack, to_bytes, unpack
from deepteach.runs.storage import write_atomic
from deepteach.teachers.linear import Teacher
from deepteach.teachers.trusted_probe import TrustedProbe
from deepteach.training.settle import usual_adjoint, usual_interval, with_options

StudentOf = Callable[[nn.Module], Student]


@dataclass(frozen=True)
class Teaching:
    """How a host's training is to be taught; every adapter's users say it in these words.

    Args:
        teacher: copied, so that what a host clones or starts over begins untaught; a
            `TrustedProbe` read by a linear teacher unless given.
        interval: optimizer steps between updates; 20, or fewer so that a run whose length is
            known has 200 updates, unless given.
        window: steps that the meta-gradient looks back through; 2 unless given.
        student: the layer whose input the teacher reads (the last linear one unless given),
            or a function of the module to a `dt.Student`.
        options: further arguments of `dt.Coach`; a `teacher_optimizer` is a function of the
            teacher's parameters.
    """

    teacher: AbstractTeacher | None = None
    interval: int | None = None
    window: int | None = None
    student: str | StudentOf | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def interval_of(self, steps: int | None) -> int:
        """Optimizer steps between updates in a training of so many, where that is known."""
        usual = usual_interval(steps or 10**9, self.window or 1)
        return usual if self.interval is None else whole_number("interval", self.interval)

    def coach(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int | None = None,
        half: bool = False,
        pool: Any = None,
        **host: Any,
    ) -> Coach:
        """The coach of a host's module and optimizer, on the module's device.

        Args:
            module: the student, bare.
            optimizer: the host's; it may be wrapped.
            steps: optimizer steps of the whole training, where they are known.
            half: the host's passes run under autocast.
            pool: what a state is averaged by, where the user names no student of their own.
            host: further arguments of `dt.Coach` that follow from the host's settings.

        Raises:
            ConfigError: an unknown option, or what the coach cannot do exactly.
        """
        signature = inspect.signature(Coach).parameters
        takes = {name: p for name, p in signature.items() if p.kind is p.KEYWORD_ONLY}
        for name in self.options:
            known("option of the coach", name, takes)
        teacher = self.teacher or Teacher([TrustedProbe()])
        device = next(module.parameters()).device
        teacher = copy.deepcopy(teacher).to(device)
        interval = self.interval_of(steps)
        adjoint = teacher.default_adjoint() or usual_adjoint(unwrapped(optimizer), half)[0]
        chosen = {
            "interval": interval,
            "window": min(2, interval) if self.window is None else self.window,
            "total_steps": steps,
            "adjoint": with_options(adjoint, half),
            **host,
            **self.options,
        }
        taught = [leaf for leaf in teacher.parameters() if leaf.requires_grad]
        if callable(chosen.get("teacher_optimizer")):
            chosen["teacher_optimizer"] = chosen["teacher_optimizer"](taught)
        return Coach(self._student(module, pool), optimizer, teacher, **chosen)

    def _student(self, module: nn.Module, pool: Any) -> Student:
        if callable(self.student):
            return self.student(module)
        layer = self.student or last_linear(module)
        if layer is None:
            raise ConfigError(
                "the module has no linear layer to read the state from: name a layer, student='...'"
            )
        return Student(module, layer, pool=pool)


class OnDevice:
    """A source of trusted batches, moved to where the student is.

    Its iterator begins where that of the source begins, so that the order is the source's own.
    """

    def __init__(self, source: Iterable[Any], moved: Callable[[Any], Any]) -> None:
        self.loader, self._moved = source, moved

    def __iter__(self) -> Iterator[Any]:
        return map(self._moved, iter(self.loader))


def whole_state(coach: Coach) -> dict[str, Any]:
    """All that the coaches of all ranks need to go on; all of them must ask for it."""
    own, ranks = coach.state_dict(), coach.ranks
    if ranks.count == 1:
        return {"coach": own, "others": []}
    # Steps are of a rank's own samples; the states they keep are those of rank 0.
    steps = [{**step, "state": None} for step in own["steps"]]
    return {"coach": own, "others": [from_bytes(s) for s in ranks.collected(to_bytes(steps))[1:]]}


def take_state(coach: Coach, tree: dict[str, Any], source: str) -> None:
    """Go on where `whole_state` was taken; load student and optimizer first.

    With another number of processes the window begins anew.

    Raises:
        CheckpointError: it is of another teacher, student or optimizer; in one line.
    """
    rank, count = coach.ranks.rank, coach.ranks.count
    try:
        state, others = dict(tree["coach"]), tree["others"]
        if len(others) + 1 != count:
            state["steps"] = []
        elif rank:
            pairs = zip(others[rank - 1], state["steps"], strict=True)
            state["steps"] = [{**step, "state": first["state"]} for step, first in pairs]
        coach.load_state_dict(state)
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the teacher's state in {source} does not fit this training "
            f"({brief(error)[:200]}): give the teacher, student and optimizer that it was saved "
            "with"
        ) from error


def save_coach(path: Path, coach: Coach) -> None:
    """`whole_state` as one safetensors file of rank 0, written whole or not at all.

    Raises:
        StorageError: the disk failed.
    """
    tensors, skeleton = pack(whole_state(coach))
    if coach.ranks.first:
        write_atomic(path, save(tensors, metadata={"tree": json_bytes(skeleton).decode()}))


def load_coach(path: Path, coach: Coach) -> None:
    """Let the coach go on where `save_coach` was called; load student and optimizer first.

    Raises:
        CheckpointError: there is no such file, or it is damaged or of another teacher.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} holds no {path.name}, the teacher's state: go on from a checkpoint "
            "that was written with this teacher, or start a training of its own from that model"
        )
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            skeleton = json.loads((file.metadata() or {})["tree"])
    except (SafetensorError, OSError, LookupError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({brief(error)[:200]}): go on from another checkpoint"
        ) from error
    take_state(coach, unpack(tensors, skeleton), str(path))


def needed(module: str, extra: str) -> None:
    """Raises ImportError: a library that an adapter is for is not installed."""
    if find_spec(module) is None:
        raise ImportError(f"{module} is not installed: pip install 'deepteach[{extra}]'")
