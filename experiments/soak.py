"""Kill, interrupt, damage and poison real training runs, and compare what they end with.

    python experiments/soak.py                                    # the full campaign
    python experiments/soak.py --kills 10 --signals 4 --flips 20 --truncations 20

Every attempt is a process of its own that runs the command line. Most are forked from this
one after torch was imported and skip drawing the page of a finished run, which saves seconds;
every `--fresh`-th is `python -m deepteach train` from nothing, with another PYTHONHASHSEED.

A campaign counts what was tried and what failed. The log ends with `all held` or says what
did not; the exit code is 0 or 1. `--minutes` bounds the whole: a campaign that it cuts short
has failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from soak_bench import (
    METHODS,
    OPERATIONS,
    PER_EPOCH,
    STEPS,
    Bench,
    Counter,
    Tally,
    committed,
    last,
    timeless,
)
from soak_networks import networks
from soak_poison import POISONED, SITES, VALUES, finite, poison
from soak_ranks import dead_ranks, rank_nonfinite, rank_signals
from soak_workers import worker_kills

import deepteach
from deepteach.errors import CheckpointError
from deepteach.runs import storage
from deepteach.runs.checkpoint import Store
from deepteach.runs.storage import write_atomic


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
                real = getattr(storage, name)

                def operation(*arguments: Any, **options: Any) -> Any:
                    total.set(0, total.get(0) + 1)
                    if total.get(0) != number:
                        return real(*arguments, **options)
                    chosen.set(0, OPERATIONS.index(name))
                    if when == "after":
                        real(*arguments, **options)
                    elif when == "amid" and name == "write":
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)

                return operation

            for name in OPERATIONS:
                setattr(storage, name, wrapped(name))

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
    latencies = sorted(latencies) or [0.0]
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
    "ranknonfinite": (2 * len(SITES) * len(VALUES), rank_nonfinite, "the same, on one rank of two"),
    "ranksignals": (20, rank_signals, "SIGTERMs and SIGINTs to one rank of two"),
    "deadranks": (20, dead_ranks, "one rank of two killed, or frozen"),
    "workerkills": (30, worker_kills, "SIGKILLs inside epochs of images that workers read"),
    # Last: what has differentiated must not be forked.
    "networks": (
        200,
        lambda bench, tally: networks(bench.random, tally, bench.out_of_time),
        "random small networks against differences",
    ),
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
