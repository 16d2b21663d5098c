"""Two ranks that train together, of which one is killed, frozen, interrupted or poisoned.

Each pair is two forks with the environment that torchrun would give them; no launcher helps.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from soak_bench import METHODS, Bench, Counter, Tally, committed, fingerprint, last
from soak_poison import POISONED, SITES, VALUES, finite, poison

from deepteach.runs.checkpoint import Store

ALL_GONE = 30.0
"""Seconds within which the ranks that are left must have ended."""


def nothing() -> None:
    """What a rank does beforehand that nobody disturbs."""


class Pair:
    """Two ranks of one run."""

    def __init__(
        self, bench: Bench, out: Path, prepare: tuple[Callable[[], None], ...] = (nothing, nothing)
    ) -> None:
        self.out, port = out, free_port()
        self.ranks = [
            bench.start(
                out,
                fresh=False,
                prepare=partial(be_rank, rank, port, own),
                log=Path(f"{out}-rank{rank}.log"),
            )
            for rank, own in enumerate(prepare)
        ]

    def begun(self) -> bool:
        """Whether both have taken a step."""
        return all(rank.taken is not None and rank.taken.get(0) > 0 for rank in self.ranks)

    def end(self) -> list[int]:
        return [rank.end() for rank in self.ranks]

    @property
    def said(self) -> list[str]:
        return [rank.said for rank in self.ranks]


def be_rank(rank: int, port: int, prepare: Callable[[], None]) -> None:
    """In the fork: the environment of this rank, then what it does beforehand."""
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    prepare()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@cache
def undisturbed(bench: Bench) -> tuple[dict[str, str], float]:
    """What two ranks leave that nothing disturbs, and the seconds from their first step on."""
    pair = Pair(bench, bench.folder / "pair")
    pair.ranks[0].wait(until=pair.begun)
    begun = time.monotonic()
    if any(pair.end()):
        raise SystemExit(f"the undisturbed ranks ended with {pair.end()}:\n{pair.said}")
    return fingerprint(pair.out), time.monotonic() - begun


def resumed(bench: Bench, out: Path, tally: Tally, what: str) -> None:
    """Both go on to the end, and end with the bits of the pair that nothing disturbed."""
    newest = committed(out)["deep"]
    pair = Pair(bench, out)
    codes = pair.end()
    if codes != [0, 0]:
        said = " / ".join(map(last, pair.said))
        tally.failures.append(f"{what}: the resumed ranks ended with {codes}: {said}")
    elif newest and f"deep: resumed at step {newest} of" not in pair.said[0]:
        tally.failures.append(f"{what}: not resumed at step {newest}")
    else:
        bench.compare(out, tally, what, undisturbed(bench)[0])


def disturbed(bench: Bench) -> tuple[Pair, int]:
    """A pair at a random moment of its training, and the rank to disturb."""
    seconds = undisturbed(bench)[1]
    pair = Pair(bench, bench.new())
    pair.ranks[0].wait(until=pair.begun)
    pair.ranks[0].wait(bench.random.uniform(0, seconds))
    return pair, bench.random.randrange(2)


def dead_ranks(bench: Bench, tally: Tally) -> None:
    """A rank is killed, or frozen every fourth time: the other ends soon, and says why."""
    slowest, late = 0.0, 0
    while tally.tried < tally.wanted:
        if bench.out_of_time():
            return
        pair, victim = disturbed(bench)
        dead, left = pair.ranks[victim], pair.ranks[1 - victim]
        number = signal.SIGSTOP if tally.tried % 4 == 3 else signal.SIGKILL
        if dead.poll() is not None or (pair.out / "summary.json").exists():
            late += 1
            pair.end()
            continue
        dead.send(number)
        sent = time.monotonic()
        left.wait(ALL_GONE + 10)
        seconds, running = time.monotonic() - sent, left.poll() is None
        dead.send(signal.SIGKILL)  # what a launcher does with a frozen one
        dead.end()
        code, said = left.end(), left.said
        what = f"dead rank {tally.tried + 1} (rank {victim}, {number.name})"
        if code == 0 and (pair.out / "summary.json").exists():
            late += 1  # nothing was left to be done together
            continue
        tally.tried += 1
        slowest = max(slowest, seconds)
        lines = [line for line in said.splitlines() if line.startswith("deepteach: ")]
        if running or seconds > ALL_GONE:
            tally.failures.append(f"{what}: the other rank ran on for {seconds:.0f} s")
        elif code != 6 or len(lines) != 1 or "Traceback" in said or "--resume" not in lines[0]:
            tally.failures.append(f"{what}: the other rank ended with {code}: {last(said)}")
        resumed(bench, pair.out, tally, what)
    tally.notes |= {"seconds to the end at most": f"{slowest:.1f}", "too late": late}


def rank_signals(bench: Bench, tally: Tally) -> None:
    """One rank is told to stop: both commit the same step and exit with 143 or 130."""
    outside = 0
    while tally.tried < tally.wanted:
        if bench.out_of_time():
            return
        pair, told = disturbed(bench)
        number = (signal.SIGTERM, signal.SIGINT)[tally.tried % 2]
        pair.ranks[told].send(number)
        codes, what = pair.end(), f"signal {tally.tried + 1} ({number.name} to rank {told})"
        stopped = f"interrupted by {number.name}; the state is committed"
        if not all(stopped in said for said in pair.said):
            outside += 1  # the last steps and the writing of results are not interrupted
            if not (pair.out / "summary.json").exists():
                said = " / ".join(map(last, pair.said))
                tally.failures.append(f"{what}: ended with {codes}: {said}")
                tally.tried += 1
            continue
        tally.tried += 1
        if codes != [128 + number] * 2:
            tally.failures.append(f"{what}: ended with {codes}")
        now = list(committed(pair.out).values())
        taken = [[rank.taken.get(i) for i in range(len(METHODS))] for rank in pair.ranks]  # type: ignore[union-attr]
        if taken[0] != taken[1] or taken[0] != now:
            tally.failures.append(f"{what}: steps {taken} were taken and {now} committed")
        resumed(bench, pair.out, tally, what)
    tally.notes |= {"after training": outside}


def rank_nonfinite(bench: Bench, tally: Tally) -> None:
    """What is not finite on one rank: both exit with 4, nothing changed on either."""
    cases = [(site, value, rank) for value in VALUES for rank in (0, 1) for site in SITES]
    slowest = 0.0
    for index, (site, value, rank) in enumerate(cases[: tally.wanted]):
        if bench.out_of_time():
            return
        out, verdicts = bench.new(), (Counter(), Counter())
        sites = tuple(site if place == rank else "none" for place in (0, 1))
        started = time.monotonic()
        pair = Pair(
            bench,
            out,
            tuple(
                lambda s=own, v=value, c=verdict: poison(s, v, c)
                for own, verdict in zip(sites, verdicts, strict=True)
            ),
        )
        codes, what = pair.end(), f"{value} in {site} of rank {rank}"
        slowest = max(slowest, time.monotonic() - started)
        tally.tried += 1
        errors = [[t for t in s.splitlines() if t.startswith("deepteach: ")] for s in pair.said]
        if codes != [4, 4] or any(len(lines) != 1 for lines in errors):
            said = " / ".join(map(last, pair.said))
            tally.failures.append(f"{what}: ended with {codes}: {said}")
            continue
        if site != "student" and [verdict.get(0) for verdict in verdicts] != [1, 1]:
            tally.failures.append(f"{what}: the failing step changed something")
        newest = Store(out / "checkpoints").newest()
        if newest is None or newest.step > POISONED or not finite(newest.tree["training"]):
            tally.failures.append(f"{what}: a checkpoint that is not finite was committed")
        elif index % 8 == 0:
            resumed(bench, out, tally, what)
    tally.notes |= {"seconds of a run at most": f"{slowest:.1f}"}
