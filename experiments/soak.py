"""Kill, interrupt, damage and poison real training runs, and compare what they end with.

    python experiments/soak.py                                    # the full campaign
    python experiments/soak.py --kills 10 --signals 4 --flips 20 --truncations 20

Every attempt is a process of its own that runs the command line. Most are forked from this
one after torch was imported and skip drawing the page of a finished run, which saves seconds;
every `--fresh`-th is `python -m deepteach train` from nothing, with another PYTHONHASHSEED.
Nothing differentiates in this process, so that nothing but one thread is forked.

A campaign counts what was tried and what failed. The log ends with `all held` or says what
did not; the exit code is 0 or 1. `--minutes` bounds the whole: a campaign that it cuts short
has failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import platform
import random
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a fork must not lose threads

import numpy as np
import safetensors
import torch
import torch._dynamo  # making an optimizer imports it: here once, not in every child
from torch import Tensor

import deepteach
import deepteach.sources  # noqa: F401 - once, as above
from deepteach import checkpoint, cli, fit, objective, report
from deepteach import coach as coaching
from deepteach.checkpoint import Store, write_atomic
from deepteach.errors import CheckpointError, NumericError
from deepteach.progress import Watcher

PER_EPOCH, EPOCHS, CLASSES = 5, 8, 3
STEPS = PER_EPOCH * EPOCHS
METHODS = {"deep": ".", "uniform": "baseline"}
"""Name of a run and its folder below --out, in the order of training."""
OPERATIONS = ("_mkdir", "_write", "_fsync", "_rename", "_rmtree")
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
        self.data = folder / "blobs.npz"
        write_blobs(self.data)
        out = folder / "straight"
        alone = self.spawn(out, hash_seed=0)
        if (code := alone.end()) != 0:
            raise SystemExit(f"the undisturbed run ended with {code}:\n{alone.said}")
        self.fresh_seconds = time.monotonic() - alone.started
        self.straight = fingerprint(out)
        again = self.start(folder / "forked", fresh=False)
        again.end()
        self.seconds = time.monotonic() - again.started

    def moment(self, child: Child) -> float:
        """Seconds from a start to a random moment of a run."""
        return self.random.uniform(0, self.seconds if child.taken else self.fresh_seconds)

    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    def new(self) -> Path:
        self.launched += 1
        return self.folder / f"run{self.launched}"

    def arguments(self, out: Path) -> list[str]:
        return ["train", "--data", f"npz:{self.data}", *SETTINGS, "--out", str(out), "--resume"]

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
        self, out: Path, fresh: bool | None = None, prepare: Callable[[], None] = lambda: None
    ) -> Child:
        """The same command, forked, unless it is time for a fresh interpreter."""
        self.attempts += 1
        if fresh is None:
            fresh = self.fresh > 0 and self.attempts % self.fresh == 0
        if fresh:
            return self.spawn(out, hash_seed=self.random.randrange(1, 2**32))
        log, taken = Path(f"{out}.log"), Counter()
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
            cli.watching = counted(cli.watching, taken)
            report.write_report = lambda run: run.path / "report.html"
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

    def compare(self, out: Path, tally: Tally, what: str) -> None:
        """The finished run must be the undisturbed one, bit for bit."""
        found = fingerprint(out)
        names = self.straight.keys() | found.keys()
        differing = sorted(n for n in names if self.straight.get(n) != found.get(n))
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
        return str(value.dtype), tuple(value.shape), hashlib.sha256(raw.numpy()).hexdigest()
    return value


def reruns(bench: Bench, tally: Tally) -> None:
    """The same seed in other processes, with other hash seeds; another seed differs."""
    for _ in range(tally.wanted):
        if bench.out_of_time():
            return
        out = bench.new()
        if (code := bench.start(out, fresh=True).end()) != 0:
            tally.failures.append(f"ended with {code}")
        else:
            bench.compare(out, tally, f"rerun {tally.tried + 1}")
        tally.tried += 1


def kills(bench: Bench, tally: Tally) -> None:
    """SIGKILL of the process group at random moments, resumed until the run is done."""
    runs = redone = 0
    while tally.tried < tally.wanted:
        out, stalled = bench.new(), 0
        runs += 1
        while True:
            if bench.out_of_time():
                return
            before = committed(out)
            child = bench.start(out)
            if tally.tried < tally.wanted:
                # Who is killed before the first checkpoint again and again gets nowhere;
                # the fourth attempt lives until it has committed something.
                patient = stalled >= 3
                if patient:
                    child.wait(until=lambda out=out, old=before: committed(out) != old)
                else:
                    child.wait(bench.moment(child))
                child.send(signal.SIGKILL)
            code, now, said = child.end(), committed(out), child.said
            what = f"kill {tally.tried + 1}"
            tally.tried += code == -9
            if code not in (0, -9):
                tally.failures.append(f"{what}: ended with {code}: {last(said)}")
                break
            if any(now[name] < before[name] for name in METHODS):
                tally.failures.append(f"{what}: checkpoints were lost: {before} became {now}")
            if "passed over" in said:
                tally.failures.append(f"{what}: a committed checkpoint was damaged")
            resumed = re.search(r"deep: resumed at step (\d+)", said)
            if resumed and int(resumed[1]) != before["deep"]:
                tally.failures.append(f"{what}: {resumed[0]}, not {before['deep']}")
            if child.taken:
                lost = [child.taken.get(i) - now[name] for i, name in enumerate(METHODS)]
                redone = max(redone, *lost)
                if max(lost) > PER_EPOCH:
                    tally.failures.append(f"{what}: {max(lost)} steps must be redone")
            if code == 0:
                bench.compare(out, tally, f"run {runs}")
                break
            stalled = stalled + 1 if now == before else 0
            if stalled > 3:
                tally.failures.append(f"{what}: no progress in {stalled} attempts")
    tally.notes |= {"runs": runs, "steps redone at most": f"{redone} of {PER_EPOCH}"}


def failpoints(bench: Bench, tally: Tally) -> None:
    """A run that kills itself before, after or in the middle of an operation on the disk."""
    total, chosen = Counter(), Counter()

    def arm(number: int, when: str) -> Callable[[], None]:
        def prepare() -> None:
            def wrapped(name: str) -> Callable:
                real = getattr(checkpoint, name)

                def operation(*arguments: Any, **options: Any) -> Any:
                    total.set(0, total.get(0) + 1)
                    if total.get(0) != number:
                        return real(*arguments, **options)
                    chosen.set(0, OPERATIONS.index(name))
                    if when == "after":
                        real(*arguments, **options)
                    elif when == "amid" and name == "_write":
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)

                return operation

            for name in OPERATIONS:
                setattr(checkpoint, name, wrapped(name))

        return prepare

    out = bench.new()
    bench.start(out, fresh=False, prepare=arm(-1, "before")).end()
    count, seen = total.get(0), set()
    for _ in range(tally.wanted):
        if bench.out_of_time():
            return
        out, when = bench.new(), bench.random.choice(("before", "amid", "after"))
        number = bench.random.randrange(1, count + 1)
        total.set(0, 0)
        code = bench.start(out, fresh=False, prepare=arm(number, when)).end()
        what = f"{when} operation {number} of {count} ({OPERATIONS[chosen.get(0)]})"
        seen.add((when, chosen.get(0)))
        tally.tried += 1
        if code != -9:
            tally.failures.append(f"{what}: ended with {code}")
            continue
        bench.resume(out, tally, what)
    tally.notes |= {"operations in a run": count, "kinds": len(seen)}


def signals(bench: Bench, tally: Tally) -> None:
    """SIGTERM and SIGINT at random moments: 143 and 130, and every step taken is committed."""
    latencies: list[float] = []
    lost = outside = 0
    while tally.tried < tally.wanted:
        if bench.out_of_time():
            return
        out = bench.new()
        number = (signal.SIGTERM, signal.SIGINT)[tally.tried % 2]
        twice = tally.tried % 5 == 4
        child = bench.start(out)
        child.wait(bench.moment(child))
        sent = time.monotonic()
        child.send(number)
        if twice:
            child.send(number)
        code = child.end()
        latencies.append(time.monotonic() - sent)
        what = f"signal {tally.tried + 1} ({number.name}{', twice' if twice else ''})"
        finished = (out / "summary.json").exists()
        if f"interrupted by {number.name}; the state is committed" not in child.said:
            # Before the first step there is nothing to commit, after the last nothing to stop.
            outside += 1
            plain = code in (-number, 128 + number) or (code == 0 and finished)
            if not plain:
                tally.failures.append(f"{what}: ended with {code}: {last(child.said)}")
                tally.tried += 1
        else:
            tally.tried += 1
            if code != 128 + number or finished:
                tally.failures.append(f"{what}: ended with {code}")
            if child.taken and not twice:
                now = committed(out)
                steps = [child.taken.get(i) - now[name] for i, name in enumerate(METHODS)]
                lost = max(lost, *steps)
                if max(steps) > 1:
                    tally.failures.append(f"{what}: {max(steps)} steps lost")
        bench.resume(out, tally, what)
    latencies.sort()
    tally.notes |= {
        "steps lost at most": lost,
        "seconds to the exit p95": f"{latencies[int(0.95 * (len(latencies) - 1))]:.2f}",
        "before or after training": outside,
    }


def damage(bench: Bench, tally: Tally, spoil: Callable[[random.Random, bytes], bytes]) -> None:
    """One file of the newest checkpoint spoilt: named, and the one before it is used."""
    out = bench.folder / "straight" / "checkpoints"
    newest = max(out.glob("step-*"))
    earlier = sorted(out.glob("step-*"))[-2]
    expected = repr(timeless(Store(out).newest().tree))  # type: ignore[union-attr]
    for index in range(tally.wanted):
        if bench.out_of_time():
            return
        path = bench.random.choice(sorted(newest.iterdir()))
        whole = path.read_bytes()
        path.write_bytes(spoil(bench.random, whole))
        try:
            found = Store(out).newest()
            told = found is not None and any(newest.name in text for text in found.skipped)
            if found is None or f"step-{found.step:08d}" != earlier.name or not told:
                tally.failures.append(f"damage {index + 1} to {path.name} went unnoticed")
        except CheckpointError as error:
            tally.failures.append(f"damage {index + 1} to {path.name}: no way back: {error}")
        finally:
            path.write_bytes(whole)
        tally.tried += 1
    if repr(timeless(Store(out).newest().tree)) != expected:  # type: ignore[union-attr]
        tally.failures.append("the undamaged checkpoint no longer loads")


def flip(rng: random.Random, data: bytes) -> bytes:
    spoilt = bytearray(data)
    spoilt[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def fallbacks(bench: Bench, tally: Tally) -> None:
    """Damage as the command line meets it: it says so and falls back, or ends with 3."""
    ways = ("newest flipped", "newest cut", "a file missing", "all flipped")
    for index in range(tally.wanted):
        if bench.out_of_time():
            return
        out, way = bench.new(), ways[index % len(ways)]
        child = bench.start(out, fresh=False)
        child.wait(until=lambda out=out: committed(out)["deep"] >= 3 * PER_EPOCH)
        child.send(signal.SIGTERM)
        child.end()
        folders = sorted((out / "checkpoints").glob("step-*"))
        for folder in folders if way == "all flipped" else folders[-1:]:
            path = bench.random.choice(sorted(folder.iterdir()))
            if way == "a file missing":
                path.unlink()
            else:
                spoil = cut if way == "newest cut" else flip
                path.write_bytes(spoil(bench.random, path.read_bytes()))
        child = bench.start(out)
        code, said = child.end(), child.said
        tally.tried += 1
        if way == "all flipped":
            if code != 3 or "is intact" not in said or (out / "summary.json").exists():
                tally.failures.append(f"{way}: ended with {code}: {last(said)}")
        elif code != 0 or f"damaged checkpoint passed over: {folders[-1].name}" not in said:
            tally.failures.append(f"{way}: ended with {code}: {last(said)}")
        elif f"deep: resumed at step {int(folders[-2].name[5:])} of" not in said:
            tally.failures.append(f"{way}: not resumed at {folders[-2].name}")
        else:
            bench.compare(out, tally, way)


SITES = ("data", "loss", "gradient", "weights", "validation", "meta-gradient", "student")
"""What may cease to be finite: a batch, the student's loss or gradient, the teacher's weights,
the validation loss, the teacher's gradient, the student after its step."""
VALUES = (float("nan"), float("inf"), float("-inf"))
POISONED = 3 * PER_EPOCH
"""The step that is spoilt: the last of an epoch, whose end would commit it, and one at which
the teacher is due as well (every 4 steps; see `poison`)."""


def poison(site: str, value: float, verdict: Counter) -> None:
    """Spoil one quantity from step POISONED on; tell whether the failing step changed anything.

    `verdict` 0 becomes 1 where student, optimizer and teacher are bit for bit what they were
    before the spoilt quantity was computed, -1 where not.
    """
    state: dict[str, Any] = {}

    def due() -> bool:
        training = state.get("training")
        return training is not None and training.step + 1 >= POISONED

    def snapshot() -> str:
        training = state["training"]
        coach = training.coach
        parts = (training.module, training.optimizer, coach.teacher)
        return repr(timeless([part.state_dict() for part in parts]))

    def spoilt(real: Callable, change: Callable[[Any], Any]) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            found = real(*arguments, **options)
            return change(found) if due() else found

        return call

    def first(leaf: Tensor) -> Tensor:
        """The tensor with one entry replaced."""
        flat = leaf.clone().reshape(-1)
        flat[:1] = value
        return flat.reshape(leaf.shape)

    def one(tree: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(iter(tree))
        return {**tree, name: first(tree[name])}

    Training, Coach = fit.Training, coaching.Coach
    take_step, update, post_step = Training.take_step, Coach.update, Coach._after_step

    def watched(training: Any, rows: Tensor) -> None:
        if "training" not in state:
            state["training"] = training
            if site == "gradient":
                leaf = next(training.module.parameters())
                leaf.register_hook(lambda grad: first(grad) if due() else grad)
        state["before"] = snapshot()
        try:
            take_step(training, rows)
        except NumericError:
            verdict.set(0, 1 if state["before"] == snapshot() else -1)
            raise

    def teaching(coach: Any, valid: Any) -> Any:
        state["before"] = snapshot()  # the student has stepped; its teacher must not
        return update(coach, valid)

    def stepped(coach: Any) -> None:
        post_step(coach)
        if due():
            with torch.no_grad():
                leaf = next(coach.student.module.parameters())
                leaf.copy_(first(leaf))

    Training.take_step, Coach.update = watched, teaching
    Objective, Validation = objective.Objective, objective.Validation
    if site == "data":
        Training.samples = spoilt(Training.samples, lambda pair: (first(pair[0]), pair[1]))
    elif site == "loss":
        Objective.sample_losses = spoilt(Objective.sample_losses, first)
    elif site == "weights":
        Objective.weights = spoilt(Objective.weights, first)
    elif site == "validation":
        real = Validation.__init__

        def made(self: Any, *arguments: Any) -> None:
            real(self, *arguments)
            loss = self._loss
            self._loss = lambda *pair: loss(*pair) * value if due() else loss(*pair)

        Validation.__init__ = made
    elif site == "meta-gradient":

        def change(found: Any) -> Any:
            return replace(found, gradient=one(found.gradient))

        Coach._differentiate = spoilt(Coach._differentiate, change)
    elif site == "student":
        Coach._after_step = stepped


def finite(tree: Any) -> bool:
    """Whether all floating tensors of a state are finite, but for the best accuracy so far."""
    if isinstance(tree, dict):
        return all(map(finite, tree.values()))
    if isinstance(tree, list | tuple):
        return all(map(finite, tree))
    return not (isinstance(tree, Tensor) and tree.is_floating_point()) or bool(
        tree.isfinite().all()
    )


def nonfinite(bench: Bench, tally: Tally) -> None:
    """NaN and infinities: exit 4 in one line, nothing changed, the last checkpoint finite."""
    cases = [(site, value) for value in VALUES for site in SITES]
    for index, (site, value) in enumerate(cases[: tally.wanted]):
        if bench.out_of_time():
            return
        out, verdict = bench.new(), Counter()
        child = bench.start(
            out, fresh=False, prepare=lambda s=site, v=value, c=verdict: poison(s, v, c)
        )
        code, what = child.end(), f"{value} in {site}"
        tally.tried += 1
        errors = [text for text in child.said.splitlines() if text.startswith("deepteach: ")]
        if code != 4 or len(errors) != 1 or "Traceback" in child.said:
            tally.failures.append(f"{what}: ended with {code}: {last(child.said)}")
            continue
        if site != "student" and verdict.get(0) != 1:
            tally.failures.append(f"{what}: the failing step changed something")
        newest = Store(out / "checkpoints").newest()
        if newest is None or newest.step > POISONED or not finite(newest.tree["training"]):
            tally.failures.append(f"{what}: a checkpoint that is not finite was committed")
        elif index % 4 == 0:  # the cause removed, it ends as if it had never been
            bench.resume(out, tally, what)


CAMPAIGNS: dict[str, tuple[int, Callable[[Bench, Tally], None], str]] = {
    "reruns": (10, reruns, "the whole run again in a fresh process"),
    "kills": (300, kills, "SIGKILLs at random moments"),
    "failpoints": (60, failpoints, "SIGKILLs at operations on the disk"),
    "signals": (20, signals, "SIGTERMs and SIGINTs that stop a training"),
    "flips": (500, lambda bench, tally: damage(bench, tally, flip), "single flipped bits"),
    "truncations": (200, lambda bench, tally: damage(bench, tally, cut), "files cut short"),
    "fallbacks": (12, fallbacks, "damaged checkpoints met by --resume"),
    "nonfinite": (len(SITES) * len(VALUES), nonfinite, "NaN, inf and -inf at each site"),
}


def versions() -> str:
    packages = {"deepteach": deepteach, "torch": torch, "numpy": np, "safetensors": safetensors}
    named = [f"{name} {package.__version__}" for name, package in packages.items()]
    return ", ".join([f"Python {platform.python_version()}", *named, platform.platform()])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, (count, _, what) in CAMPAIGNS.items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=what)
    parser.add_argument("--fresh", type=int, default=20, metavar="N", help="see above; 0: never")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="bound on the whole")
    parser.add_argument("--log", type=Path, default=Path("results/soak.log"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    lines: list[str] = []

    def say(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    say(f"command: python experiments/soak.py {shlex.join(sys.argv[1:])}".rstrip())
    say(f"versions: {versions()}")
    say(f"date: {time.strftime('%Y-%m-%d', time.gmtime())}; seed {options.seed}; one thread")
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="deepteach-soak-") as folder:
        deadline = started + 60 * options.minutes
        bench = Bench(Path(folder), options.seed, options.fresh, deadline)
        say(
            f"a run: {STEPS} steps of {' and '.join(METHODS)} each, a checkpoint every "
            f"{PER_EPOCH}; {bench.seconds:.1f} s, {bench.fresh_seconds:.1f} s in a fresh process"
        )
        for name, (_, campaign, _) in CAMPAIGNS.items():
            tally, begun = Tally(name, getattr(options, name)), time.monotonic()
            campaign(bench, tally)
            if tally.tried < tally.wanted:
                tally.failures.append(f"stopped by --minutes {options.minutes:g}")
            say(f"{tally.line()}; {time.monotonic() - begun:.0f} s")
            for failure in tally.failures:
                say(f"  FAILED {name}: {failure}")
            failures += tally.failures
    outcome = f"{len(failures)} failed" if failures else "all held"
    say(f"{time.monotonic() - started:.0f} s; {outcome}")
    options.log.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.log, ("\n".join(lines) + "\n").encode())
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
