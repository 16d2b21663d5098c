"""Runs that read JPEGs by two workers, killed in the middle of epochs.

The undisturbed runs read without workers, so that those must not show in the bits either.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
from PIL import Image
from soak_bench import METHODS, Bench, Child, Tally, committed, last

CLASSES, SIDE, EPOCHS = 3, 16, 4
SIZES = {"train": 70, "valid": 24, "test": 24}
SETTINGS = (
    "--student cnn --threads 1 --device cpu --seed 0 --batch_size 10 --valid_batch 9 "
    f"--epochs {EPOCHS} --interval 3 --window 2 --workers 2"
).split()
VARIANTS: dict[str, list[str]] = {
    "accumulated with groups": ["--accumulate", "2", "--group", "source"],
    "as it is": [],
    "accumulated": ["--accumulate", "2"],
    "with groups": ["--group", "source"],
}
VICTIMS = ("all", "trainer", "worker")
"""Who is killed: the trainer and its workers; it alone, as for want of memory; one of them."""
KILLS = 3
"""A run is killed so often, after one SIGTERM by which a step inside an epoch is committed."""
ALL_GONE = 30.0
"""Seconds within which workers without a trainer, or a trainer without one, must have ended."""


def worker_kills(bench: Bench, tally: Tally) -> None:
    """SIGKILL in the middle of epochs that workers read ahead, resumed until the run is done."""
    benches: list[Bench] = []
    runs = inside = 0
    seen: dict[str, int] = dict.fromkeys(VICTIMS, 0)
    if tally.wanted:
        write_photos(bench.folder / "photos")
    while tally.tried < tally.wanted:
        if bench.out_of_time():
            return
        if len(benches) < len(VARIANTS):
            name = list(VARIANTS)[len(benches)]
            data = ["--data", f"manifest:{bench.folder / 'photos' / 'list.csv'}"]
            settings = [*data, *SETTINGS, *VARIANTS[name]]
            benches.append(bench.other(name, settings, ["--workers", "0"]))
        own, name = benches[runs % len(benches)], list(VARIANTS)[runs % len(benches)]
        out, what = own.new(), f"{name} run {runs + 1}"
        runs += 1
        stop(own, out, tally, what)
        for _ in range(min(KILLS, tally.wanted - tally.tried)):
            before = committed(out)
            at = before["uniform"] or before["deep"]  # where it goes on
            victim = VICTIMS[tally.tried % len(VICTIMS)]
            if not kill(own, out, tally, f"{what}, {victim} killed", victim):
                break
            inside += at % per_epoch(own) > 0
            seen[victim] += 1
        if out.exists():
            own.resume(out, tally, what)
    told = ", ".join(f"{victim} {count}" for victim, count in seen.items())
    tally.notes |= {"killed": told, "runs": runs, "resumed inside an epoch": inside}


def per_epoch(bench: Bench) -> int:
    return committed(bench.folder / "straight")["deep"] // EPOCHS


def begun(bench: Bench, out: Path) -> Child | None:
    """A run that is in the middle of a random epoch of those left; None where it is done."""
    steps, now = per_epoch(bench), committed(out)
    left = [
        (place, step)
        for place, name in enumerate(METHODS)
        for step in range(now[name] + 1, EPOCHS * steps)
        if step % steps
    ]
    if not left:
        return None
    place, step = bench.random.choice(left)
    child = bench.start(out, fresh=False)
    assert child.taken is not None
    taken = child.taken
    child.wait(until=lambda: taken.get(place) >= step)
    return child


def stop(bench: Bench, out: Path, tally: Tally, what: str) -> None:
    """SIGTERM in the middle of an epoch: where it stopped is committed."""
    child = begun(bench, out)
    assert child is not None  # nothing of it is done
    child.send(signal.SIGTERM)
    if (code := child.end()) not in (0, 143):
        tally.failures.append(f"{what}: SIGTERM ended it with {code}: {last(child.said)}")


def kill(bench: Bench, out: Path, tally: Tally, what: str, victim: str) -> bool:
    """One SIGKILL in the middle of an epoch; whether there was one left."""
    before = committed(out)
    child = begun(bench, out)
    if child is None or child.poll() is not None:
        return False
    code = struck(bench, child, victim)
    tally.tried += 1
    if code not in ((2, 0) if victim == "worker" else (-9,)):
        tally.failures.append(f"{what}: ended with {code}: {last(child.said)}")
    if code == 2 and "a process that reads samples has ended" not in child.said:
        tally.failures.append(f"{what}: {last(child.said)}")
    if victim != "trainer" and "Traceback" in child.said:  # of its workers, who write to it
        tally.failures.append(f"{what}: a traceback")
    now, resumed = committed(out), re.search(r"deep: resumed at step (\d+)", child.said)
    if any(now[name] < before[name] for name in METHODS):
        tally.failures.append(f"{what}: checkpoints were lost: {before} became {now}")
    if resumed and int(resumed[1]) != before["deep"]:
        tally.failures.append(f"{what}: {resumed[0]}, not {before['deep']}")
    if not gone(child):
        tally.failures.append(f"{what}: its workers ran on for {ALL_GONE:.0f} s")
        os.killpg(child.pid, signal.SIGKILL)
    return True


def struck(bench: Bench, child: Child, victim: str) -> int:
    """The exit code after SIGKILL to one of `VICTIMS`."""
    if victim == "all":
        child.send(signal.SIGKILL)
    elif victim == "trainer":
        os.kill(child.pid, signal.SIGKILL)
    elif workers := workers_of(child):
        os.kill(bench.random.choice(workers), signal.SIGKILL)
    return child.end()


def workers_of(child: Child) -> list[int]:
    try:
        text = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def gone(child: Child) -> bool:
    """Whether nobody of its group runs soon; zombies, which have ended, do not count."""
    end = time.monotonic() + ALL_GONE
    while time.monotonic() < end:
        states = [
            state
            for state, group in map(state_of, Path("/proc").glob("[0-9]*"))
            if group == child.pid
        ]
        if all(state in "ZX" for state in states):
            return True
        time.sleep(0.05)
    return False


def state_of(process: Path) -> tuple[str, int]:
    """Its state, by a letter, and its group."""
    try:
        words = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return words[0], int(words[2])


def write_photos(folder: Path) -> None:
    """JPEGs of noise over the colour of their class, and a manifest; one source is half wrong."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    colours = draw.uniform(60, 190, (CLASSES, 3))
    lines = ["path,label,split,source"]
    for part, count in SIZES.items():
        for i in range(count):
            true = i % CLASSES
            source = "camera" if draw.random() < 0.5 else "web"
            wrong = part == "train" and source == "web" and draw.random() < 0.5
            pixels = colours[true] + draw.normal(0, 40, (SIDE, SIDE, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / f"{part}{i}.jpg", quality=90)
            label = (true + 1) % CLASSES if wrong else true
            lines.append(f"{part}{i}.jpg,class {label},{part},{source}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
