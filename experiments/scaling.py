"""How the cost of a teacher update grows: with width, depth, classes, trusted samples, B, ranks.

    python experiments/scaling.py                          # writes results/scaling.csv
    python experiments/draw_scaling.py                     # and draws it

One axis at a time is varied around `BASE`, a multilayer perceptron. Of each point, plain and taught
cycles take turns in one process, a step of one after a step of the other, in several rounds; a
cycle's last step has the update. `units` is that update in plain steps: its step less a taught
step without one, over a plain step, all of the same round; the median over the rounds counts, `low`
and `high` are their range. One process is timed by its own CPU clock, several by the wall's.
`extra_mib` is by how much a taught cycle's peak of memory exceeds a plain one's, in a process that
has done both before; at ranks it is not measured. Points that are in the file already are not
measured again, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import torch
import torch.distributed as dist
from csv_rows import append
from soak_ranks import free_port
from torch import nn

import deepteach as dt
from deepteach.benchmarks.memory import fresh_process, peak
from deepteach.benchmarks.plan import PLAIN, PROBED, Plan
from deepteach.benchmarks.update_cost import in_turn
from deepteach.benchmarks.work import Cycle, Problem, Work, drawn
from deepteach.distributed.collectives import Ranks, here
from deepteach.reproduction.runner import commit

PAPER, PROBE, CHECKPOINTED = "Reversed", "Reversed" + PROBED, "Checkpointed"
FEATURES, SEED = 64, 0


@dataclass(frozen=True)
class Point:
    """One problem: `depth` hidden layers of `width` units, `trusted` samples at every update."""

    row: str = PAPER
    width: int = 256
    depth: int = 2
    classes: int = 10
    trusted: int = 64
    window: int = 2
    ranks: int = 1
    batch: int = 64

    @property
    def interval(self) -> int:
        """Steps of a cycle: some without an update."""
        return max(4, self.window)


BASE = Point()
AXES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "width": ((PAPER, PROBE), (64, 128, 256, 512, 1024)),
    "depth": ((PAPER, PROBE), (1, 2, 4, 8, 16)),
    "classes": ((PAPER, PROBE), (2, 10, 100, 1000)),
    "trusted": ((PAPER, PROBE), (64, 256, 1024, 4096)),
    "window": ((PAPER, CHECKPOINTED), (1, 2, 4, 8, 16, 32)),
    "ranks": ((PAPER, PROBE), (1, 2)),
}
"""The rows and values of each axis."""

WARM_UP = 4
"""Rounds that do not count: the first updates examine the loop, too."""

CLASSES_TRUSTED, RANKS_BATCH = 1024, 512
"""Classes need trusted samples, and ranks something to share."""


def points(axis: str) -> Iterator[tuple[int, Point]]:
    """The values of an axis and their problems."""
    rows, values = AXES[axis]
    for row in rows:
        for value in values:
            point = replace(BASE, row=row, **{axis: value})
            if axis == "classes":
                point = replace(point, trusted=CLASSES_TRUSTED)
            if axis == "ranks":
                point = replace(point, width=1024, batch=RANKS_BATCH, trusted=RANKS_BATCH)
            yield value, point


def problem(point: Point) -> Problem:
    torch.manual_seed(SEED)
    sizes = [FEATURES, *[point.width] * point.depth, point.classes]
    layers: list[nn.Module] = []
    for wide, narrow in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    student = nn.Sequential(*layers[:-1])
    *batches, trusted = drawn([*[point.batch] * 3, point.trusted], (FEATURES,), point.classes)
    return Problem(student, str(len(student) - 1), batches, trusted, point.classes)


def cycle(point: Point, row: str) -> Cycle:
    plan = Plan(student="mlp-64", batch=point.batch, interval=point.interval)
    return Work(plan, problem=problem(point)).cycle(row, point.window)


def over_ranks(point: Point, row: str, ranks: Ranks) -> Cycle:
    """The same, each rank with its part of every batch and the whole trusted one."""
    made = problem(point)
    optimizer = torch.optim.SGD(made.module.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    teachers: dict[str, Callable[[], Any]] = {
        PLAIN: dt.Uniform,
        PAPER: lambda: dt.Teacher([dt.Internal(point.width), dt.Label(point.classes)]),
        PROBE: lambda: dt.Teacher([dt.TrustedProbe()]),
    }
    coach = dt.Coach(
        *(dt.Student(made.module, made.internal), optimizer, teachers[row]()),
        interval=point.interval, window=point.window,
    )  # fmt: skip
    coach.objective.ranks = ranks

    def steps() -> Iterator[None]:
        for number in range(point.interval):
            x, y = made.batches[number % 3]
            optimizer.zero_grad()
            coach.loss(ranks.part(x), ranks.part(y)).backward()
            optimizer.step()
            coach.update(made.trusted)
            yield

    return steps


def timed(
    plain: Cycle, taught: Cycle, rounds: int, now: Callable[[], float]
) -> dict[str, float | str]:
    """The update, and a taught step, in plain steps."""
    for _ in range(WARM_UP):
        in_turn(plain, taught, now)
    updates, steps, plains = [], [], []
    for _ in range(rounds):
        laps = in_turn(plain, taught, now)
        unit = statistics.median(own for own, _ in laps)
        step = statistics.median(own for _, own in laps[:-1])
        updates.append((laps[-1][1] - step) / unit)
        steps.append(step / unit)
        plains.append(unit)
    found = {
        "units": statistics.median(updates),
        "low": min(updates),
        "high": max(updates),
        "taught_step": statistics.median(steps),
        "plain_ms": 1000 * statistics.median(plains),
    }
    return {name: f"{value:.4g}" for name, value in found.items()}


def peak_alone(point: str) -> None:
    """In a process of its own, which Linux lets forget its peak: print [plain, taught]."""
    torch.set_num_threads(1)
    made = Point(**json.loads(point))
    cycles = [cycle(made, row) for row in (PLAIN, made.row)]
    peaks = []
    for _ in range(2):  # the first time warms up: what is imported and kept once
        peaks = []
        for one in cycles:
            Path("/proc/self/clear_refs").write_text("5")
            for _ in one():
                pass
            peaks.append(peak())
    print(json.dumps(peaks))


def extra_memory(point: Point) -> str:
    """MiB of one taught cycle beyond a plain one."""
    folder = str(Path(__file__).parent)
    call = f"import sys; sys.path.insert(0, {folder!r}); import scaling; "
    call += "scaling.peak_alone(sys.argv[1])"
    return f"{fresh_process(call, json.dumps(asdict(point)))[1]:.1f}"


def at_ranks(point: Point, rounds: int) -> dict[str, Any]:
    """By processes that find each other through gloo; rank 0 tells."""
    command = [
        sys.executable,
        __file__,
        f"--rounds={rounds}",
        f"--point={json.dumps(asdict(point))}",
    ]
    command += [f"--port={free_port()}"]
    workers = [
        subprocess.Popen([*command, f"--rank={rank}"], stdout=subprocess.PIPE, text=True)
        for rank in range(point.ranks)
    ]
    said = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit(f"a rank of {point} failed")
    return json.loads(said[0].splitlines()[-1])


def rank_work(options: argparse.Namespace) -> None:
    """In each of the processes; rank 0 prints."""
    torch.set_num_threads(1)
    point = Point(**json.loads(options.point))
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{options.port}",
        rank=options.rank,
        world_size=point.ranks,
        timeout=timedelta(minutes=10),
    )
    ranks = here() if point.ranks > 1 else Ranks()
    cycles = [over_ranks(point, row, ranks) for row in (PLAIN, point.row)]
    plain, taught = cycles
    found = timed(plain, taught, options.rounds, time.perf_counter)
    if options.rank == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


def measured(axis: str, point: Point, rounds: int, memory: bool) -> dict[str, Any]:
    if axis == "ranks":
        return at_ranks(point, rounds)
    found = timed(cycle(point, PLAIN), cycle(point, point.row), rounds, time.process_time)
    return {**found, "extra_mib": extra_memory(point) if memory else ""}


FIELDS = (
    *("axis", "value", *(field.name for field in fields(Point)), "units", "low", "high"),
    *("taught_step", "plain_ms", "extra_mib", "rounds", "threads", "seed", "torch", "commit"),
    "command",
)


def done(path: Path) -> set[tuple[str, str, str]]:
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(line["axis"], line["value"], line["row"]) for line in csv.DictReader(file)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("axes", nargs="*", help=f"of {', '.join(AXES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-memory", action="store_true", help="measure no memory")
    parser.add_argument("--least", action="store_true", help="the two smallest values of an axis")
    parser.add_argument("--out", type=Path, default=Path("results/scaling.csv"))
    for name in ("--point", "--rank", "--port"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point is not None:
        options.rank = int(options.rank)
        rank_work(options)
        return 0
    if unknown := set(options.axes) - set(AXES):
        parser.error(f"no such axis: {', '.join(sorted(unknown))}; there are {', '.join(AXES)}")
    torch.set_num_threads(1)
    own = sys.argv[1:] if arguments is None else arguments
    about = {"rounds": options.rounds, "threads": 1, "seed": SEED, "torch": torch.__version__}
    about |= {"commit": commit(), "command": " ".join(["python experiments/scaling.py", *own])}
    known = done(options.out)
    for axis in options.axes or AXES:
        for value, point in points(axis):
            small = sorted(AXES[axis][1])[:2]
            if (axis, str(value), point.row) in known or (options.least and value not in small):
                continue
            found = measured(axis, point, options.rounds, not options.no_memory)
            line = {"axis": axis, "value": value, **asdict(point), **found, **about}
            append(options.out, FIELDS, line)
            said = f"{axis} {value}, {point.row}: {line['units']} plain steps"
            print(f"{said} ({line['low']} to {line['high']}), {line.get('extra_mib', '')} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
