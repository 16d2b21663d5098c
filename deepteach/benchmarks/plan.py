"""What `deepteach bench` measures: rows, windows, optimizers, and for how long."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from deepteach.benchmarks.peers import PEERS
from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.adjoint.registry import ADJOINTS
from deepteach.core.derivatives.finite_differences import LONGEST_WINDOW
from deepteach.errors import ConfigError

LEARNING_RATE = 1e-3
"""Small: random labels make a steep loss, in which 20 steps are not undone at 1e-2."""

PLAIN, TAUGHT, PUBLISHED = "plain", "taught steps", "Meta-Weight-Net step"
HANDWRITTEN = "Meta-Weight-Net by hand"
"""The published loop in plain torch (`peers.meta_weight_net`): a peer that is always there."""

PROBED = ", TrustedProbe"
"""Ends the rows whose teacher reads a fitted `TrustedProbe`, as a demo's does."""


class BenchStudent(NamedTuple):
    """A student of the bench: a model by name, its inputs, and how it is measured.

    `rounds` multiplies the repeats, for steps that take little time; the peak memory of a student
    that is small beside the interpreter says nothing, and is not measured without `memory`.
    """

    model: str
    shape: tuple[int, ...] = (3, 32, 32)
    batch: int = 32
    rounds: int = 1
    memory: bool = True


def small_mlp() -> nn.Module:
    """64-64-10: what a step costs that computes next to nothing."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


BENCH_STUDENTS = {
    "mlp-64": BenchStudent(f"{__name__}:small_mlp", (64,), 64, rounds=20, memory=False),
    "resnet8-16": BenchStudent("resnet8", (3, 16, 16), 64, memory=False),
    "resnet32": BenchStudent("resnet32"),
}
"""What is measured unless students are named; any other name is a model on 3x32x32 inputs."""


def _adjoint(name: str, **options: Any) -> tuple[str, Callable[[], AbstractAdjoint]]:
    kind: Any = ADJOINTS[name]
    return kind.__name__, partial(kind, **options)


STRATEGIES: dict[str, Callable[[], AbstractAdjoint]] = dict(
    [
        _adjoint("reversed", tolerance=0.05),
        _adjoint("stored"),
        ("all graphs", _adjoint("stored", graphs=sys.maxsize)[1]),
        _adjoint("checkpointed"),
        ("finite differences", _adjoint("stored", derivatives="finite-difference")[1]),
        _adjoint("exact"),
        _adjoint("unrolled"),
    ]
)
MOMENTUM = "momentum SGD"
STUDENT_OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    MOMENTUM: lambda leaves: torch.optim.SGD(
        leaves, LEARNING_RATE, momentum=0.9, weight_decay=5e-4
    ),
    "SGD": lambda leaves: torch.optim.SGD(leaves, LEARNING_RATE, weight_decay=5e-4),
    "Nesterov": lambda leaves: torch.optim.SGD(
        leaves, LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
    ),
    "Adam": lambda leaves: torch.optim.Adam(leaves, 1e-3),
    "AdamW": lambda leaves: torch.optim.AdamW(leaves, 1e-3),
}
REVERSIBLE = (MOMENTUM, "Adam", "AdamW")


class BenchCase(NamedTuple):
    """What one line measures; a window of 0 is training without updates."""

    row: str
    window: int
    optimizer: str = MOMENTUM

    def __str__(self) -> str:
        return f"{self.row}, {self.optimizer}" + (f", B = {self.window}" if self.window else "")


@dataclass(frozen=True)
class Plan:
    """What to measure: `interval` K steps a cycle, `windows` B that a teacher looks back."""

    student: str = "resnet32"
    batch: int = 32
    repeats: int = 5
    interval: int = 20
    windows: tuple[int, ...] = (1, 2, 20)
    threads: int = 1
    quick: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch < 2 or self.repeats < 1:
            raise ConfigError(
                f"bench needs a batch of 2 or more and at least 1 repeat, got {self.batch} and "
                f"{self.repeats}"
            )

    @property
    def spec(self) -> BenchStudent:
        """The student's model and inputs."""
        return BENCH_STUDENTS.get(self.student) or BenchStudent(self.student)

    def shortened(self) -> Plan:
        """The same in seconds: to see that it runs, not to quote."""
        return replace(self, repeats=1, interval=4, windows=(2,), quick=True)

    def cases(self) -> list[BenchCase]:
        """In the order in which they take turns."""
        peers = [name for name in PEERS if importlib.util.find_spec(name) is not None]
        rows = [*STRATEGIES, *peers]
        found = [BenchCase(TAUGHT, 0), *(BenchCase(name, b) for b in self.windows for name in rows)]
        probed = [BenchCase(TAUGHT + PROBED, 0), BenchCase("Reversed" + PROBED, 2)]
        last = [*probed, BenchCase(PUBLISHED, 1), BenchCase(HANDWRITTEN, 1)]
        if self.quick:
            return [*found, *last]
        # The graph of 20 steps of a large student may not fit: one of the three shows it.
        found = [e for e in found if e.row not in ("Unrolled", "torchopt") or e.window <= 5]
        found = [e for e in found if e.row != "finite differences" or e.window <= LONGEST_WINDOW]
        # Over two steps the one graph that is of use is kept anyway.
        found = [e for e in found if e.row != "all graphs" or e.window > 2]
        for name in STUDENT_OPTIMIZERS:
            if name != MOMENTUM:
                kinds = ("Reversed", "Stored", "Checkpointed")[name not in REVERSIBLE :]
                found += [BenchCase(TAUGHT, 0, name), *(BenchCase(kind, 2, name) for kind in kinds)]
        return [*found, *last]


def plans(
    names: str, batch: int | None, repeats: int, *, threads: int = 1, quick: bool = False
) -> list[Plan]:
    """A plan for each student named, with commas between them; its own batch unless given."""
    found = []
    for name in filter(None, map(str.strip, names.split(","))):
        spec = Plan(name).spec
        count = repeats * spec.rounds
        plan = Plan(name, spec.batch if batch is None else batch, count, threads=threads)
        found.append(plan.shortened() if quick else plan)
    if not found or len({plan.student for plan in found}) < len(found):
        raise ConfigError(f"--student names students, each once, got {names!r}")
    return found
