"""What a teacher update costs: against plain training, and against peers that are installed.

Everything is a ratio to plain training of the same student on the same batches, measured in
turn with it in the same process, step by step: what else the machine does comes in bursts,
longer than a step, and falls on both. On one CPU thread the time is that of the process itself,
so that others' turns are not counted. Peak memory is that of a process of its own for each row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from deepteach.benchmarks.memory import device_memory, process_memory
from deepteach.benchmarks.peers import PEERS
from deepteach.benchmarks.plan import PLAIN, PROBED, STRATEGIES, TAUGHT, BenchCase, Plan
from deepteach.benchmarks.work import Cycle, Work
from deepteach.errors import ConfigError
from deepteach.report.table import TextTable
from deepteach.training.clock import seconds

DONE = object()


@dataclass(frozen=True)
class UpdateCost:
    """One line of bench.csv.

    `ratio` is the time of a cycle (K taught steps and an update) over that of K plain steps:
    the mean over its steps of the median over the repeats; `low` and `high` are the range of
    its cycles; `units` the update alone, in plain steps. `peak_mib` is the peak memory of a
    process that does only this, `extra_mib` what it adds to its start; on CUDA they are of the
    device's memory, in this process, which holds the plain student as well.
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


def measure_updates(
    plan: Plan, say: Callable[[str], None] = lambda _: None, done: Sequence[UpdateCost] = ()
) -> Iterator[UpdateCost]:
    """The rows of a plan as they are found, but for those `done`; `say` is told what is next.

    Raises:
        ConfigError: an unknown student, or one without a linear layer; `done` is of another plan.
    """
    known = {BenchCase(row.row, row.window, row.optimizer): row for row in done}
    shared = {"student", "batch", "interval", "repeats", "threads"}
    for row in done:
        if any(getattr(row, name) != getattr(plan, name) for name in shared):
            raise ConfigError("the rows measured before are of other settings: use another --out")
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        for case in [BenchCase(PLAIN, 0), *plan.cases()]:
            if case not in known:
                without = TAUGHT + PROBED if case.row.endswith(PROBED) else TAUGHT
                taught = known.get(BenchCase(without, 0, case.optimizer))
                known[case] = _row(plan, case, taught, say)
                yield known[case]
    finally:
        torch.set_num_threads(before)


def _row(
    plan: Plan, case: BenchCase, taught: UpdateCost | None, say: Callable[[str], None]
) -> UpdateCost:
    """One case and plain training in turn, then its memory."""
    say(str(case))
    works = Work(plan, case.optimizer), Work(plan, case.optimizer)
    cycles = works[0].cycle(PLAIN, 0), works[1].cycle(case.row, case.window)
    device = torch.device(plan.device)
    now = partial(seconds, device)
    in_turn(*cycles, now)
    laps = [in_turn(*cycles, now) for _ in range(plan.repeats)]
    steps = [[own / plain for plain, own in lap] for lap in laps]
    ratios = list(map(statistics.mean, steps))
    ratio = statistics.mean(map(statistics.median, zip(*steps, strict=True)))
    wanted = plan.spec.memory and (not plan.quick or case.row in (PLAIN, "Reversed"))
    if device.type == "cuda":
        peak, extra = device_memory(cycles[1], device)
    else:
        peak, extra = process_memory(plan, case) if wanted else (None, None)
    # A peer's steps before its window are weighted by a function of the loss: plain ones.
    base = 1.0 if case.row in PEERS else taught.ratio if taught else 0.0
    updates = base > 0 and (case.row.removesuffix(PROBED) in STRATEGIES or case.row in PEERS)
    return UpdateCost(
        **case._asdict(),
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


def in_turn(plain: Cycle, own: Cycle, now: Callable[[], float]) -> list[tuple[float, float]]:
    """Seconds of each step of the two cycles, a step of one after a step of the other.

    A step ends when its device has done it.
    """
    found = []
    sides = plain(), own()
    while True:
        started = now()
        if next(sides[0], DONE) is DONE:
            return found
        between = now()
        next(sides[1])
        found.append((between - started, now() - between))


def update_table(rows: Sequence[UpdateCost], title: str) -> TextTable:
    """The measured rows; an empty cell where a row has no such figure.

    The title names the student, or a column where there are several.
    """
    students = [f"{row.student}, {row.batch}" for row in rows]
    several = len(set(students)) > 1
    columns = ("row", "optimizer", "B", "ratio", "range", "update", "peak MiB", "added")
    if several:
        columns = ("student, batch", *columns)
    else:
        title = f"{rows[0].student}, batch {rows[0].batch}: {title}" if rows else title
    cells = tuple(
        (
            *([student] if several else []),
            row.row,
            row.optimizer,
            str(row.window or ""),
            f"{row.ratio:.3f}",
            f"{row.low:.3f}-{row.high:.3f}",
            f"{row.units:.2f}" if row.units else "",
            "" if row.peak_mib is None else f"{row.peak_mib:.0f}",
            "" if row.extra_mib is None else f"{row.extra_mib:.0f}",
        )
        for student, row in zip(students, rows, strict=True)
    )
    return TextTable(title, columns, cells)
