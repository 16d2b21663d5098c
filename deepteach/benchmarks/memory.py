"""Peak memory of a process of its own, or of a CUDA device: no Python tool sees torch's."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from deepteach.benchmarks.plan import BenchCase, Plan
from deepteach.benchmarks.work import Cycle, Work


def process_memory(plan: Plan, case: BenchCase) -> tuple[float, float]:
    """(peak, peak above the start) in MiB of a process that runs one cycle of a case."""
    call = f"import sys; from {__name__} import report_memory; report_memory(*sys.argv[1:])"
    return fresh_process(call, json.dumps(asdict(plan)), json.dumps(case))


def fresh_process(call: str, *arguments: str) -> tuple[float, float]:
    """(peak, peak above the start) in MiB of Python code that prints two peaks."""
    # What is freed goes back to the system: otherwise glibc's heap keeps the holes between the
    # blocks that live on, and they are a sixth of the peak of a long window.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", call, *arguments],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    start, peak = json.loads(done.stdout.splitlines()[-1])
    return peak, peak - start


def device_memory(cycle: Cycle, device: torch.device) -> tuple[float, float]:
    """(peak, peak above the start) in MiB of CUDA memory in one cycle, in this process."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    for _ in cycle():
        pass
    peak = torch.cuda.max_memory_allocated(device)
    return peak / 2**20, (peak - start) / 2**20


def report_memory(plan: str, case: str) -> None:
    """In a process of its own: run a cycle, print its peaks."""
    made, wanted = Plan(**json.loads(plan)), BenchCase(*json.loads(case))
    torch.set_num_threads(made.threads)
    cycle = Work(made, wanted.optimizer).cycle(wanted.row, wanted.window)
    start = peak()
    for _ in cycle():
        pass
    print(json.dumps([start, peak()]))


def peak() -> float:
    """Peak resident memory in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss counts the parent's memory at the fork, too
        high = next(line for line in status.read_text().splitlines() if "VmHWM" in line)
        return int(high.split()[1]) / 2**10
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
