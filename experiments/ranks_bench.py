"""How much faster two processes train than one: plain and taught, on the same global batches.

    python experiments/ranks_bench.py                      # writes results/ranks.csv

Both counts are measured in turn by the same process, one thread each; while one process
trains alone the other sleeps. A cycle is `--interval` steps, with one update of the teacher
where there is one. Every rank computes the whole trusted batch. Run it where nothing else runs.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import torch
import torch.distributed as dist
from soak_ranks import free_port

import deepteach as dt
from deepteach.distributed.collectives import Ranks, here
from deepteach.models import build

SHAPE, CLASSES, PROCESSES = (3, 32, 32), 10, 2
FIELDS = (
    *("training", "student", "batch_size", "valid_batch", "interval", "window"),
    *("one_seconds", "two_seconds", "speed_up", "lowest", "highest", "bytes_per_cycle"),
)


class Bench:
    """One kind of training on some ranks."""

    def __init__(self, options: argparse.Namespace, taught: bool, ranks: Ranks) -> None:
        self.options, self.ranks = options, ranks
        generator = torch.Generator().manual_seed(0)
        module, internal = build(options.student, SHAPE, CLASSES, 0)
        assert internal is not None
        optimizer = torch.optim.SGD(module.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
        student = dt.Student(module, internal)
        x = torch.randn(options.batch_size, *SHAPE, generator=generator)
        y = torch.randint(CLASSES, (options.batch_size,), generator=generator)
        self.batch = ranks.part(x), ranks.part(y)
        size = options.valid_batch
        self.valid = (
            torch.randn(size, *SHAPE, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        torch.manual_seed(0)
        width = dt.Coach(student, optimizer, dt.Uniform()).look(*self.valid).internal.shape[1]
        teacher = dt.Teacher([dt.Internal(width), dt.Label(CLASSES)]) if taught else dt.Uniform()
        self.coach = dt.Coach(
            student, optimizer, teacher, interval=options.interval, window=options.window
        )
        self.coach.objective.ranks = ranks

    def cycle(self) -> float:
        """Seconds of `interval` steps and an update."""
        started = time.perf_counter()
        for _ in range(self.options.interval):
            self.coach.optimizer.zero_grad()
            self.coach.loss(*self.batch).backward()
            self.coach.optimizer.step()
            self.coach.update(self.valid)
        return time.perf_counter() - started


def work(options: argparse.Namespace) -> None:
    """In each of the two processes; rank 0 writes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{options.port}",
        rank=options.rank,
        world_size=PROCESSES,
        timeout=timedelta(minutes=30),
    )
    lines = []
    for taught in (False, True):
        alone, together = Bench(options, taught, Ranks()), Bench(options, taught, here())
        pairs = []
        for round_ in range(options.rounds + 1):
            one = alone.cycle() if options.rank == 0 else 0.0
            dist.barrier()
            together.ranks.sent.clear()
            two = together.cycle()
            dist.barrier()
            if round_:  # the first one warms up
                pairs.append((one, two))
        ratios = sorted(one / two for one, two in pairs if two)
        values = (
            *("taught" if taught else "plain", options.student, options.batch_size),
            *(options.valid_batch, options.interval, options.window),
            *(f"{statistics.median(column):.4f}" for column in zip(*pairs, strict=True)),
            *(f"{value:.3f}" for value in (statistics.median(ratios), ratios[0], ratios[-1])),
            sum(together.ranks.sent.values()),
        )
        lines.append(values)
        if options.rank == 0:
            print(f"{values[0]}: {values[8]} x ({values[9]} to {values[10]})", flush=True)
    if options.rank == 0:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([FIELDS, *lines])
        print(f"written: {options.out}")
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--valid_batch", type=int, default=128)
    parser.add_argument("--interval", type=int, default=20)
    parser.add_argument("--window", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/ranks.csv"))
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        work(options)
        return 0
    port = free_port()
    command = [sys.executable, *sys.argv, f"--port={port}"]
    workers = [subprocess.Popen([*command, f"--rank={rank}"]) for rank in range(PROCESSES)]
    return max(worker.wait() for worker in workers)


if __name__ == "__main__":
    sys.exit(main())
