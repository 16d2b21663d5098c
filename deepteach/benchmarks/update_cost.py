"""What a teacher update costs: against plain training, and against peers that are installed.

Everything is a ratio to plain training of the same student on the same batches, measured in
turn with it in the same process, step by step: what else the machine does comes in bursts,
longer than a step, and falls on both. Peak memory is that of a process of its own for each row,
since torch's allocations are seen by no Python tool.
"""

from __future__ import annotations

import copy
import csv
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepteach.benchmarks.method_cost import Cost
from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.adjoint.fixed_point import Exact, ExactSGD
from deepteach.core.adjoint.one_step import Lookahead
from deepteach.core.adjoint.reversed import Reversed
from deepteach.core.adjoint.stored import Checkpointed, Stored
from deepteach.core.adjoint.unrolled import Unrolled
from deepteach.core.coach import Coach
from deepteach.core.finite_differences import LONGEST_WINDOW
from deepteach.core.student import Student
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.models import build
from deepteach.teachers.features import Internal, Label
from deepteach.teachers.linear import Teacher
from deepteach.teachers.meta_weight_net import MetaWeightNet

SHAPE, CLASSES = (3, 32, 32), 10
DONE = object()
Cycle = Callable[[], Iterator[None]]
LR = 1e-3
"""Small: random labels make a steep loss, in which 20 steps are not undone at 1e-2."""

PLAIN, TAUGHT, PUBLISHED = "plain", "taught steps", "Meta-Weight-Net step"
STRATEGIES: dict[str, Callable[[], AbstractAdjoint]] = {
    "Reversed": lambda: Reversed(tolerance=0.05),
    "Stored": Stored,
    "Checkpointed": Checkpointed,
    "finite differences": lambda: Stored(derivatives="finite-difference"),
    "Exact": Exact,
    "Unrolled": Unrolled,
}
PEERS = ("higher", "torchopt")
MOMENTUM = "momentum SGD"
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    MOMENTUM: lambda leaves: torch.optim.SGD(leaves, LR, momentum=0.9, weight_decay=5e-4),
    "SGD": lambda leaves: torch.optim.SGD(leaves, LR, weight_decay=5e-4),
    "Nesterov": lambda leaves: torch.optim.SGD(
        leaves, LR, momentum=0.9, weight_decay=5e-4, nesterov=True
    ),
    "Adam": lambda leaves: torch.optim.Adam(leaves, 1e-3),
    "AdamW": lambda leaves: torch.optim.AdamW(leaves, 1e-3),
}
REVERSIBLE = (MOMENTUM, "Adam", "AdamW")


class Entry(NamedTuple):
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

    def __post_init__(self) -> None:
        if self.batch < 2 or self.repeats < 1:
            raise ConfigError(
                f"bench needs a batch of 2 or more and at least 1 repeat, got {self.batch} and "
                f"{self.repeats}"
            )

    def shortened(self) -> Plan:
        """The same in seconds: to see that it runs, not to quote."""
        return replace(self, repeats=1, interval=4, windows=(2,), quick=True)

    def entries(self) -> list[Entry]:
        """In the order in which they take turns."""
        peers = [name for name in PEERS if importlib.util.find_spec(name) is not None]
        rows = [*STRATEGIES, *peers]
        found = [Entry(TAUGHT, 0), *(Entry(name, b) for b in self.windows for name in rows)]
        if self.quick:
            return [*found, Entry(PUBLISHED, 1)]
        # The graph of 20 steps of a large student may not fit: one of the three shows it.
        found = [e for e in found if e.row not in ("Unrolled", "torchopt") or e.window <= 5]
        found = [e for e in found if e.row != "finite differences" or e.window <= LONGEST_WINDOW]
        for name in OPTIMIZERS:
            if name != MOMENTUM:
                kinds = ("Reversed", "Stored", "Checkpointed")[name not in REVERSIBLE :]
                found += [Entry(TAUGHT, 0, name), *(Entry(kind, 2, name) for kind in kinds)]
        return [*found, Entry(PUBLISHED, 1)]


@dataclass(frozen=True)
class Row:
    """One line of bench.csv.

    `ratio` is the time of a cycle (K taught steps and an update) over that of K plain steps:
    the mean over its steps of the median over the repeats; `low` and `high` are the range of
    its cycles; `units` the update alone, in plain steps. `peak_mib` is the peak memory of a
    process that does only this, `extra_mib` what it adds to its start.
    """

    row: str
    window: int
    optimizer: str
    student: str
    batch: int
    interval: int
    repeats: int
    threads: int
    torch: str
    ratio: float
    low: float
    high: float
    units: float
    plain_seconds: float
    peak_mib: float | None
    extra_mib: float | None


class Work:
    """A student, its optimizer and a few batches; a cycle yields after each step."""

    def __init__(self, plan: Plan, optimizer: str = MOMENTUM) -> None:
        self.plan = plan
        self.module, internal = build(plan.student, SHAPE, CLASSES, seed=0)
        linear = [name for name, part in self.module.named_modules() if isinstance(part, nn.Linear)]
        if internal is None and not linear:
            raise ConfigError(f"bench needs a student with a linear layer: {plan.student} has none")
        self.internal = internal or linear[-1]
        g = torch.Generator().manual_seed(0)
        self.batches = [
            (
                torch.randn(plan.batch, *SHAPE, generator=g),
                torch.randint(CLASSES, (plan.batch,), generator=g),
            )
            for _ in range(4)
        ]
        self.optimizer = OPTIMIZERS[optimizer](list(self.module.parameters()))
        self.reversible = optimizer in REVERSIBLE

    def cycle(self, row: str, window: int) -> Cycle:
        """The work of one cycle of a row."""
        if row == PLAIN:
            return self.plain
        if row in PEERS:
            return lambda: self.unroll(row, window)
        if row == PUBLISHED:
            return self.taught(MetaWeightNet(), Lookahead(), 1, 1)
        if row == "Exact":
            self.optimizer = ExactSGD(
                self.module.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4
            )
        teacher = Teacher([Internal(self.width()), Label(CLASSES)])
        if row == TAUGHT:
            kind = STRATEGIES["Reversed" if self.reversible else "Stored"]
            return self.taught(teacher, kind(), 1, sys.maxsize)
        return self.taught(teacher, STRATEGIES[row](), window, self.plan.interval)

    def width(self) -> int:
        with torch.no_grad():
            return Student(copy.deepcopy(self.module), self.internal)(
                self.batches[0][0]
            ).internal.shape[1]

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self.plan.interval):
            yield self.batches[number % 3]

    def plain(self) -> Iterator[None]:
        for x, y in self.rows():
            self.optimizer.zero_grad()
            F.cross_entropy(self.module(x), y).backward()
            self.optimizer.step()
            yield

    def taught(
        self, teacher: AbstractTeacher, adjoint: AbstractAdjoint, window: int, interval: int
    ) -> Cycle:
        student = Student(self.module, self.internal)
        coach = Coach(
            *(student, self.optimizer, teacher), interval=interval, window=window, adjoint=adjoint
        )
        coach.trust(self.batches[3])

        def cycle() -> Iterator[None]:
            for x, y in self.rows():
                self.optimizer.zero_grad()
                coach.loss(x, y).backward()
                self.optimizer.step()
                coach.update(self.batches[3])
                yield

        return cycle

    def unroll(self, peer: str, window: int) -> Iterator[None]:
        """The same cycle with a peer: its last steps as one graph, then carried back.

        The teacher is the cheapest there is, a function of the loss (whose gradient stops).
        """
        teacher = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid())
        batches = list(self.rows())

        def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            losses = F.cross_entropy(module(x), y, reduction="none")
            weights = teacher(losses.detach().unsqueeze(1)).squeeze(1)
            return (weights * losses).sum() / weights.sum()

        def descend(module: nn.Module) -> None:
            x, y = self.batches[3]
            taught = list(teacher.parameters())
            torch.autograd.grad(F.cross_entropy(module(x), y), taught)
            with torch.no_grad():
                for ours, theirs in zip(self.module.parameters(), module.parameters(), strict=True):
                    ours.copy_(theirs)

        for x, y in batches[: len(batches) - window]:
            self.optimizer.zero_grad()
            loss(self.module, x, y).backward()
            self.optimizer.step()
            yield
        *window_but_last, last = batches[len(batches) - window :]
        if peer == "higher":
            import higher  # pyright: ignore[reportMissingImports]

            with higher.innerloop_ctx(self.module, self.optimizer) as (copied, stepper):
                for x, y in window_but_last:
                    stepper.step(loss(copied, x, y))
                    yield
                stepper.step(loss(copied, *last))
                descend(copied)
        else:
            import torchopt  # pyright: ignore[reportMissingImports]

            copied = copy.deepcopy(self.module)
            stepper = torchopt.MetaSGD(
                copied, lr=LR, momentum=0.9, weight_decay=5e-4, moment_requires_grad=True
            )
            for x, y in window_but_last:
                stepper.step(loss(copied, x, y))
                yield
            stepper.step(loss(copied, *last))
            descend(copied)
        yield


def measure(
    plan: Plan, say: Callable[[str], None] = lambda _: None, done: Sequence[Row] = ()
) -> Iterator[Row]:
    """The rows of a plan as they are found, but for those `done`; `say` is told what is next.

    Raises:
        ConfigError: an unknown student, or one without a linear layer; `done` is of another plan.
    """
    known = {Entry(row.row, row.window, row.optimizer): row for row in done}
    shared = {"student", "batch", "interval", "repeats", "threads"}
    for row in done:
        if any(getattr(row, name) != getattr(plan, name) for name in shared):
            raise ConfigError("the rows measured before are of other settings: use another --out")
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        for entry in [Entry(PLAIN, 0), *plan.entries()]:
            if entry not in known:
                taught = known.get(Entry(TAUGHT, 0, entry.optimizer))
                known[entry] = _row(plan, entry, taught, say)
                yield known[entry]
    finally:
        torch.set_num_threads(before)


def _row(plan: Plan, entry: Entry, taught: Row | None, say: Callable[[str], None]) -> Row:
    """One entry and plain training in turn, then its memory."""
    say(str(entry))
    works = Work(plan, entry.optimizer), Work(plan, entry.optimizer)
    cycles = works[0].cycle(PLAIN, 0), works[1].cycle(entry.row, entry.window)
    _in_turn(*cycles)
    laps = [_in_turn(*cycles) for _ in range(plan.repeats)]
    steps = [[own / plain for plain, own in lap] for lap in laps]
    ratios = list(map(statistics.mean, steps))
    ratio = statistics.mean(map(statistics.median, zip(*steps, strict=True)))
    wanted = not plan.quick or entry.row in (PLAIN, "Reversed")
    peak, extra = _memory(plan, entry) if wanted else (None, None)
    # A peer's steps before its window are weighted by a function of the loss: plain ones.
    base = 1.0 if entry.row in PEERS else taught.ratio if taught else 0.0
    updates = base > 0 and (entry.row in STRATEGIES or entry.row in PEERS)
    return Row(
        **entry._asdict(),
        student=plan.student,
        batch=plan.batch,
        interval=plan.interval,
        repeats=plan.repeats,
        threads=plan.threads,
        torch=torch.__version__,
        ratio=ratio,
        low=min(ratios),
        high=max(ratios),
        units=(ratio - base) * plan.interval if updates else 0.0,
        plain_seconds=statistics.median(plain for lap in laps for plain, _ in lap),
        peak_mib=peak,
        extra_mib=extra,
    )


def _in_turn(plain: Cycle, own: Cycle) -> list[tuple[float, float]]:
    """Seconds of each step of the two cycles, a step of one after a step of the other."""
    found = []
    sides = plain(), own()
    while True:
        started = time.perf_counter()
        if next(sides[0], DONE) is DONE:
            return found
        between = time.perf_counter()
        next(sides[1])
        found.append((between - started, time.perf_counter() - between))


def _memory(plan: Plan, entry: Entry) -> tuple[float, float]:
    """(peak, peak above the start) in MiB of a process that runs one cycle of an entry."""
    # What is freed goes back to the system: otherwise glibc's heap keeps the holes between the
    # blocks that live on, and they are a sixth of the peak of a long window.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    call = f"import sys; from {__name__} import _report_memory; _report_memory(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", call, json.dumps(asdict(plan)), json.dumps(entry)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    start, peak = json.loads(done.stdout.splitlines()[-1])
    return peak, peak - start


def _report_memory(plan: str, entry: str) -> None:
    """In a process of its own: run a cycle, print [peak before, peak after]."""
    made, wanted = Plan(**json.loads(plan)), Entry(*json.loads(entry))
    torch.set_num_threads(made.threads)
    cycle = Work(made, wanted.optimizer).cycle(wanted.row, wanted.window)
    start = _peak()
    for _ in cycle():
        pass
    print(json.dumps([start, _peak()]))


def _peak() -> float:
    """Peak resident memory in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss counts the parent's memory at the fork, too
        high = next(line for line in status.read_text().splitlines() if "VmHWM" in line)
        return int(high.split()[1]) / 2**10
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def refuse_overwrite(path: Path) -> None:
    """Before anything is measured: results are not written over."""
    if path.exists():
        raise ConfigError(f"{path} exists: move it away, or name another file by --out")


def append(row: Row | Cost, path: Path) -> None:
    """Add a row to a CSV file, which is made where there is none."""
    names = [field.name for field in fields(row)]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(names)
        values = [getattr(row, name) for name in names]
        writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in values])


def read(path: Path) -> list[Row]:
    """The rows of a file that `append` wrote. Raises ConfigError where it is none."""
    whole, text = ("window", "batch", "interval", "repeats", "threads"), ("row", "optimizer")
    try:
        with path.open(newline="") as file:
            found = []
            for line in csv.DictReader(file):
                values: dict[str, Any] = {}
                for name, value in line.items():
                    kept = name in (*text, "student", "torch")
                    number = int if name in whole else float
                    values[name] = value if kept else number(value) if value else None
                found.append(Row(**values))
            return found
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} holds no rows of a bench ({error}): name another --out"
        ) from None


def cells_of(rows: list[Row]) -> list[list[str]]:
    """Cells of the printed table, the header first."""
    cells = [["row", "optimizer", "B", "ratio", "range", "update", "peak MiB", "added"]]
    for row in rows:
        cells.append(
            [
                row.row,
                row.optimizer,
                str(row.window or ""),
                f"{row.ratio:.3f}",
                f"{row.low:.3f}-{row.high:.3f}",
                f"{row.units:.2f}" if row.units else "",
                "" if row.peak_mib is None else f"{row.peak_mib:.0f}",
                "" if row.extra_mib is None else f"{row.extra_mib:.0f}",
            ]
        )
    return cells
