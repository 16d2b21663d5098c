"""Real training processes to disturb, and what they leave behind.

Most are forked from this process after torch was imported; nothing differentiates here, so
that nothing but one thread is forked.
"""

from __future__ import annotations

import copy
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a fork must not lose threads

import numpy as np
import torch
import torch._dynamo  # making an optimizer imports it: here once, not in every child
from torch import Tensor

import deepteach.data.readers  # noqa: F401 - once, as above
from deepteach import cli
from deepteach.cli import train
from deepteach.report import html as report
from deepteach.runs.checkpoint import Store
from deepteach.training.progress import Watcher

PER_EPOCH, EPOCHS, CLASSES = 5, 8, 3
STEPS = PER_EPOCH * EPOCHS
METHODS = {"deep": ".", "uniform": "baseline"}
"""Name of a run and its folder below --out, in the order of training."""
OPERATIONS = ("mkdir", "write", "fsync", "rename", "rmtree")
SETTINGS = (
    "--noise.kind flip --noise.rate 0.4 --student mlp --threads 1 --device cpu --seed 0 "
    f"--epochs {EPOCHS} --batch_size 20 --interval 4 --window 3 --valid_batch 9"
).split()
PATIENCE = 300.0  # seconds after which a process counts as hanging


@dataclass
class Tally:
    """What one campaign did."""

    name: str
    wanted: int
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        notes = "".join(f"; {key} {value}" for key, value in self.notes.items())
        return (
            f"{self.name}: {self.tried} of {self.wanted} tried, {len(self.failures)} failed{notes}"
        )


class Counter:
    """Two numbers that a forked process shares with this one."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 16)

    def set(self, place: int, value: int) -> None:
        self.memory[8 * place : 8 * place + 8] = struct.pack("q", value)

    def get(self, place: int) -> int:
        return struct.unpack("q", self.memory[8 * place : 8 * place + 8])[0]


@dataclass
class Child:
    """One attempt: a process that leads its own group, and what it printed."""

    pid: int
    log: Path
    taken: Counter | None
    """Steps taken, by the place of the run in METHODS; None where nobody counted."""
    started: float = field(default_factory=time.monotonic)
    status: int | None = None

    def poll(self) -> int | None:
        """The exit code, minus the signal that ended it, or None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, seconds: float = PATIENCE, until: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end and not until():
            time.sleep(0.002)

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.killpg(self.pid, number)

    def end(self) -> int:
        """The exit code; -9 for one that had to be killed because it hung."""
        self.wait()
        if self.poll() is None:
            self.send(signal.SIGKILL)
            self.wait()
        assert self.status is not None
        return self.status

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


class Bench:
    """A data set, the run that nothing disturbed, and the means to start others."""

    def __init__(self, folder: Path, seed: int, fresh: int, deadline: float) -> None:
        self.folder, self.random, self.fresh = folder, random.Random(seed), fresh
        self.deadline, self.launched, self.attempts = deadline, 0, 0
        write_blobs(folder / "blobs.npz")
        self.settings = ["--data", f"npz:{folder / 'blobs.npz'}", *SETTINGS]
        out = folder / "straight"
        alone = self.spawn(out, hash_seed=0)
        if (code := alone.end()) != 0:
            raise SystemExit(f"the undisturbed run ended with {code}:\n{alone.said}")
        self.fresh_seconds = time.monotonic() - alone.started
        self.straight = fingerprint(out)
        again = self.start(folder / "forked", fresh=False)
        again.end()
        self.seconds = time.monotonic() - again.started

    def other(self, name: str, settings: list[str], undisturbed: list[str]) -> Bench:
        """A bench for another command, beside this one in a folder of its own.

        Args:
            name: of the folder.
            settings: of the command.
            undisturbed: settings that its undisturbed run, a fork, has in addition.
        """
        bench = copy.copy(self)
        bench.folder = self.folder / name
        bench.folder.mkdir()
        bench.settings = [*settings, *undisturbed]
        out = bench.folder / "straight"
        alone = bench.start(out, fresh=False)
        if (code := alone.end()) != 0:
            raise SystemExit(f"the undisturbed run of {name} ended with {code}:\n{alone.said}")
        bench.seconds = time.monotonic() - alone.started
        bench.straight = fingerprint(out)
        bench.settings = settings
        return bench

    def moment(self, child: Child) -> float:
        """Seconds from a start to a random moment of a run."""
        return self.random.uniform(0, self.seconds if child.taken else self.fresh_seconds)

    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    def new(self) -> Path:
        self.launched += 1
        return self.folder / f"run{self.launched}"

    def arguments(self, out: Path) -> list[str]:
        return ["train", *self.settings, "--out", str(out), "--resume"]

    def spawn(self, out: Path, hash_seed: int) -> Child:
        """`python -m deepteach train` from nothing."""
        log = Path(f"{out}.log")
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "deepteach", *self.arguments(out)],
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            )
        process.returncode = 0  # `Child` waits for it
        return Child(process.pid, log, None)

    def start(
        self,
        out: Path,
        fresh: bool | None = None,
        prepare: Callable[[], None] = lambda: None,
        log: Path | None = None,
    ) -> Child:
        """The same command, forked, unless it is time for a fresh interpreter."""
        self.attempts += 1
        if fresh is None:
            fresh = self.fresh > 0 and self.attempts % self.fresh == 0
        if fresh:
            return self.spawn(out, hash_seed=self.random.randrange(1, 2**32))
        log, taken = log or Path(f"{out}.log"), Counter()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._be(self.arguments(out), log, taken, prepare)
        try:
            os.setpgid(pid, pid)  # here as well: a signal may be sent before it has run
        except OSError:
            pass
        return Child(pid, log, taken)

    def _be(
        self, arguments: list[str], log: Path, taken: Counter, prepare: Callable[[], None]
    ) -> None:
        """In the child: be `deepteach ARGUMENTS`; does not return."""
        code = 1
        try:
            os.setpgid(0, 0)
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(target, 1)
            os.dup2(target, 2)
            sys.argv = ["deepteach", *arguments]
            train.watching = counted(train.watching, taken)
            report.write_report = no_page
            prepare()
            code = cli.main(arguments)
            sys.stdout.flush()
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def compare(
        self, out: Path, tally: Tally, what: str, straight: dict[str, str] | None = None
    ) -> None:
        """The finished run must be the undisturbed one, bit for bit."""
        found, straight = fingerprint(out), straight or self.straight
        names = straight.keys() | found.keys()
        differing = sorted(n for n in names if straight.get(n) != found.get(n))
        if differing:
            tally.failures.append(f"{what}: differs in {', '.join(differing)}")
        shutil.rmtree(out)

    def resume(self, out: Path, tally: Tally, what: str) -> None:
        """Go on to the end, without further trouble, and compare."""
        newest = committed(out)
        child = self.start(out)
        code = child.end()
        if code != 0:
            tally.failures.append(f"{what}: the resumed run ended with {code}: {last(child.said)}")
        elif "passed over" in child.said:
            tally.failures.append(f"{what}: a committed checkpoint was damaged")
        elif newest["deep"] and f"deep: resumed at step {newest['deep']} of" not in child.said:
            tally.failures.append(f"{what}: not resumed at step {newest['deep']}")
        else:
            self.compare(out, tally, what)


def no_page(run: Any) -> Path:
    return run.path / "report.html"


def write_blobs(path: Path) -> None:
    """Three blobs in eight dimensions."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(CLASSES, 8))
    arrays: dict[str, Any] = {}
    for part, count in (("train", 20 * PER_EPOCH), ("valid", 30), ("test", 30)):
        y = np.arange(count) % CLASSES
        arrays[f"y_{part}"] = y
        arrays[f"x_{part}"] = (centres[y] + rng.normal(size=(count, 8))).astype(np.float32)
    np.savez(path, **arrays)


def counted(watching: Callable, taken: Counter) -> Callable:
    """`watching` whose watcher also counts the steps."""

    @contextmanager
    def watch(console: Any, name: str, epochs: int, total: int) -> Iterator[Watcher]:
        with watching(console, name, epochs, total) as watcher:
            tell, place = watcher.step, list(METHODS).index(name)

            def step(number: int) -> None:
                taken.set(place, number)
                tell(number)

            watcher.step = step
            yield watcher

    return watch


def committed(out: Path) -> dict[str, int]:
    """The newest checkpoint of each run, 0 where there is none; opens nothing."""
    found = {}
    for name, place in METHODS.items():
        steps = [int(path.name[5:]) for path in (out / place / "checkpoints").glob("step-*")]
        found[name] = max(steps, default=0)
    return found


def last(text: str) -> str:
    return (text.strip().splitlines() or ["nothing said"])[-1]


def fingerprint(out: Path) -> dict[str, str]:
    """A digest of all that a run left, by name, without times, paths and the page."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(path.relative_to(out))
        if "checkpoints/" in name or path.name in ("environment.json", "config.yaml", ".lock"):
            continue
        if path.suffix == ".html":
            continue
        raw = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            lines = [raw] if path.suffix == ".json" else raw.splitlines()
            raw = repr([timeless(json.loads(line)) for line in lines]).encode()
        found[name] = hashlib.sha256(raw).hexdigest()
    for name, place in METHODS.items():
        newest = Store(out / place / "checkpoints").newest()
        state = repr(timeless(newest.tree)) if newest else "none"
        found[f"checkpoint of {name}"] = hashlib.sha256(state.encode()).hexdigest()
    return found


def timeless(value: Any) -> Any:
    """A tree without times, tensors as dtype, shape and digest."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    if isinstance(value, list | tuple):
        return [timeless(item) for item in value]
    if isinstance(value, Tensor):
        raw = value.contiguous().view(torch.uint8) if value.dim() else value.reshape(1)
        return (
            str(value.dtype),
            tuple(value.shape),
            hashlib.sha256(raw.numpy().tobytes()).hexdigest(),
        )
    return value
