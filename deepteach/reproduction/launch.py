"""Run commands by several processes of this machine, or by Ray: existing engines both."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from deepteach.errors import ConfigError

Entry = Callable[[list[str]], int]
"""The command line's `main`. It comes as an argument: this file stands below it."""


@dataclass(frozen=True)
class Job:
    """One run: the arguments of `deepteach`, and the file that its output goes to."""

    name: str
    arguments: tuple[str, ...]
    log: Path
    threads: int


TaskExit = tuple[Job, int | None]
"""A run and its exit code, None where its process died."""

Executor = Callable[[Sequence[Job], int, Entry], Iterator[TaskExit]]
"""(tasks, how many at a time, the command) -> outcomes, as they come."""


def run_task(task: Job, entry: Entry, folder: str) -> int:
    """In the worker: the command as on a terminal, its output in the log; the exit code."""
    os.chdir(folder)
    with task.log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            return entry(list(task.arguments))
        except BaseException:
            traceback.print_exc()
            return 1


def by_processes(tasks: Sequence[Job], jobs: int, entry: Entry) -> Iterator[TaskExit]:
    """`jobs` processes at a time. One that is killed fails its run, not the others'."""
    waiting, here = deque(tasks), os.getcwd()
    context = multiprocessing.get_context("spawn")
    while waiting:
        workers = min(jobs, len(waiting))
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
        running: dict[Future[int], Job] = {}
        broken = False
        try:
            while running or (waiting and not broken):
                while waiting and len(running) < workers and not broken:
                    task = waiting.popleft()
                    running[pool.submit(run_task, task, entry, here)] = task
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    try:
                        code = future.result()
                    except BrokenProcessPool:
                        broken, code = True, None
                    yield running.pop(future), code
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on: a new start would find it in its way."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def by_ray(tasks: Sequence[Job], jobs: int, entry: Entry) -> Iterator[TaskExit]:
    """Ray decides where each run goes; all machines must see the same folders.

    The cluster is that of RAY_ADDRESS; without it, `jobs` runs at a time on this machine.
    Where the cluster has GPUs each run takes one.

    Raises:
        ConfigError: ray is not installed.
    """
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise ConfigError(
            "--executor ray needs the package ray: pip install 'deepteach[ray]'"
        ) from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    local = "RAY_ADDRESS" not in os.environ
    slots = jobs * max(task.threads for task in tasks) if local else None
    ray.init(num_cpus=slots, include_dashboard=False if local else None, log_to_driver=False)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        remote, here = ray.remote(run_task), os.getcwd()
        running = {
            remote.options(num_cpus=task.threads, num_gpus=gpus).remote(task, entry, here): task
            for task in tasks
        }
        while running:
            finished, _ = ray.wait(list(running), num_returns=1)
            try:
                code = ray.get(finished[0])
            except RayError:
                code = None
            yield running.pop(finished[0]), code
    finally:
        ray.shutdown()


EXECUTORS: dict[str, Executor] = {"processes": by_processes, "ray": by_ray}
