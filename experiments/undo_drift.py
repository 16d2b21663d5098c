"""How far undone steps end from the true ones: results/undo_drift.csv.

    python experiments/undo_drift.py --images mini.npz

Students are trained with momentum SGD while the states of the last 20 steps are kept. At
some steps these are undone in float32, one after the other, and each recovered state is
compared with the kept one: the relative distance of the parameters, how far its replayed
losses are from those recorded, and for some windows how far the meta-gradient is from that of
the kept states. `curvature` is the eigenvalue of greatest size of the newest batch's Hessian,
by power iteration. A run that is in the file already is not repeated.

`--images` is an npz file in the layout of docs/results.md with images of 32x32; without it
only the digits are trained on.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import deepteach as dt
from deepteach.core.adjoint import guards
from deepteach.core.adjoint.base import Window
from deepteach.core.optim import State
from deepteach.data.noise import corrupt
from deepteach.data.readers import load
from deepteach.models import build
from deepteach.tree import Params, distance, norm

OUT = Path("results/undo_drift.csv")
LONGEST, WINDOWS, ITERATIONS = 20, (2, 5, 10, 20), 5
MOMENTUM = 0.9
COLUMNS = (
    *("student", "data", "rate", "batch", "seed", "step", "train_loss", "curvature"),
    *("undone", "states", "losses", "meta_gradient"),
)


class Run(NamedTuple):
    """One training; `measured` are the steps after which the last ones are undone."""

    student: str
    data: str
    rate: float
    batch: int
    seed: int
    measured: tuple[int, ...]
    windows: tuple[int, ...] = WINDOWS


EARLY, LATE = (13, 18, 28), (20, 40, 80, 160, 320, 640)
RUNS = (
    *(Run("mlp", "digits", rate, 64, 0, LATE) for rate in (0.01, 0.1, 0.5)),
    *(Run("cnn", "digits", rate, 64, 0, LATE) for rate in (0.01, 0.1)),
    *(Run("resnet32", "images", 0.1, 32, seed, EARLY, ()) for seed in range(4)),
    Run("resnet8", "images", 0.1, 32, 0, (20, 80, 320), (5, 20)),
)


class Undone(dt.Reversed):
    """Undoes every step, whatever was kept, and looks at no result."""

    def __init__(self) -> None:
        super().__init__(tolerance=1e30)

    def theta_before(self, position: int, later: State, window: Window) -> Params:
        return window.rule.previous_theta(later, window.steps[position].hyper)


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = corrupt(load("digits", seed), "flip", 0.4, seed)
    assert isinstance(data.x_train, Tensor)
    return data.x_train, data.y_train, data.x_valid, data.y_valid


def images(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels / 64 - 2, channels first."""
    with np.load(path, allow_pickle=False) as file:
        x, y, xv, yv = (
            torch.from_numpy(file[k]) for k in ("x_train", "y_train", "x_valid", "y_valid")
        )
    return _scaled(x), y.long(), _scaled(xv), yv.long()


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float() / 64 - 2


def curvature(coach: dt.Coach) -> float:
    """The Hessian's eigenvalue of greatest size at the newest recorded step."""
    step = coach.recorder.steps[-1]
    assert step.state is not None
    theta = step.state.theta
    generator = torch.Generator().manual_seed(0)
    along = {n: torch.randn(leaf.shape, generator=generator) for n, leaf in theta.items()}
    size = 1.0
    for _ in range(ITERATIONS):
        length = norm(along)
        along = {n: leaf / length for n, leaf in along.items()}
        along, _ = coach.objective.linearised(theta, step, coach.omega).products(along)
        size = norm(along)
    return size


def undone(coach: dt.Coach) -> Iterator[tuple[int, float, float]]:
    """(steps undone, distance of the states, of the losses)."""
    later, objective = coach.recorder.state(), coach.objective
    for count, step in enumerate(reversed(coach.recorder.steps), 1):
        assert step.state is not None
        theta = coach.rule.previous_theta(later, step.hyper)
        pass_ = objective.linearised(theta, step, coach.omega, first_order=True)
        off = guards.replay_error(pass_.losses, step, coach.ranks)
        yield count, distance(theta, step.state.theta), off
        slots = coach.rule.previous_slots(theta, pass_.gradient, later, step.hyper)
        later = State(theta, slots)


def measured(run: Run, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> Iterator[list[Any]]:
    x, y, *trusted = data
    trusted = tuple(part[:128] for part in trusted)
    module, _ = build(run.student, tuple(x.shape[1:]), 10, run.seed)
    module.train()
    torch.manual_seed(run.seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=run.rate, momentum=MOMENTUM)
    coach = dt.Coach(
        dt.Student(module, "fc"),
        optimizer,
        dt.Teacher([dt.TrustedProbe()]),
        interval=10**9,
        window=LONGEST,
        adjoint=dt.Stored(),
    )
    coach.trust(trusted)
    generator = torch.Generator().manual_seed(run.seed)
    order: list[Tensor] = []
    for step in range(1, max(run.measured) + 1):
        order = order or list(torch.randperm(len(x), generator=generator).split(run.batch))
        rows = order.pop(0)
        optimizer.zero_grad()
        loss = coach.loss(x[rows], y[rows])
        loss.backward()
        optimizer.step()
        if step not in run.measured:
            continue
        meta = {}
        for window in run.windows:
            exact = coach.meta_gradient(*trusted, window=window)
            found = coach.meta_gradient(*trusted, window=window, adjoint=Undone())
            meta[window] = f"{distance(found, exact):.2e}"
        sharp = f"{curvature(coach):.1f}"
        for count, states, losses in undone(coach):
            yield [
                *run[:5],
                *(step, f"{float(loss.detach()):.3f}", sharp),
                *(count, f"{states:.2e}", f"{losses:.2e}", meta.get(count, "")),
            ]


def done(rows: list[list[str]], run: Run) -> bool:
    own = [row for row in rows if row[:5] == [str(value) for value in run[:5]]]
    return len(own) == sum(min(step, LONGEST) for step in run.measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[str]] = []
    if chosen.out.exists():
        with chosen.out.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
    sources: dict[str, Any] = {"digits": digits(0)}
    if chosen.images is not None:
        sources["images"] = images(chosen.images)
    for run in RUNS:
        if run.data not in sources or done(rows, run):
            continue
        own = [[str(value) for value in row] for row in measured(run, sources[run.data])]
        rows = [row for row in rows if row[:5] != own[0][:5]] + own
        partial = chosen.out.with_suffix(".part")
        with partial.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
        partial.replace(chosen.out)
        print(*run[:5], [row[-4:] for row in own if int(row[8]) in WINDOWS], flush=True)


if __name__ == "__main__":
    main()
