"""What a step of each method costs, in plain steps of the same training.

The training loop itself, on digits: each round trains plainly and then by every method, a few
epochs each, and divides by its own plain training. Evaluation after each epoch is part of
both. The interval is 5 (the demo has 3); a method with an interval of its own keeps that.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from deepteach.data.noise import corrupt
from deepteach.data.readers import load
from deepteach.report.table import TextTable
from deepteach.runs.reader import UNIFORM
from deepteach.teachers.registry import METHODS
from deepteach.training.api import run
from deepteach.training.config import demo, make

EPOCHS, INTERVAL = 8, 5


@dataclass(frozen=True)
class MethodCost:
    """One method. `ratio` is a step's time over that of a plain step: median, `low`, `high`.

    `trainings` is how many trainings of the student its reported one takes in all, and
    `whole` the product: what a user pays for that one.
    """

    method: str
    ratio: float
    low: float
    high: float
    trainings: float
    whole: float
    repeats: int
    torch: str


def measure_methods(
    repeats: int,
    say: Callable[[str], None] = lambda _: None,
    *,
    names: Iterable[str] | None = None,
    epochs: int | None = None,
) -> list[MethodCost]:
    """The cost of methods, all unless named; `say` is told what is being measured."""
    names, epochs = names or METHODS, epochs or EPOCHS
    ratios: dict[str, list[float]] = {name: [] for name in names if name != UNIFORM}
    trainings: dict[str, float] = {}
    settings = {**demo(), "student": "cnn", "epochs": epochs, "interval": INTERVAL}
    settings["method"] = UNIFORM
    config = make({**settings, "baseline": False, "beside": tuple(ratios)})
    data = load(config.data, config.seed, config.valid_size)
    data = corrupt(data, config.noise.kind, config.noise.rate, config.seed)
    for repeat in range(repeats):
        say(f"round {repeat + 1} of {repeats}: plain training, then {len(ratios)} methods")
        result = run(config, data)
        plain = result.summary["seconds"] / result.summary["steps"]
        for name, summary in result.beside.items():
            ratios[name].append(summary["seconds"] / summary["steps"] / plain)
            trainings[name] = summary["steps"] / result.summary["steps"]
    return [
        MethodCost(
            method=name,
            ratio=statistics.median(found),
            low=min(found),
            high=max(found),
            trainings=trainings[name],
            whole=statistics.median(found) * trainings[name],
            repeats=repeats,
            torch=torch.__version__,
        )
        for name, found in ratios.items()
    ]


def method_table(costs: Sequence[MethodCost], title: str) -> TextTable:
    """The measured methods."""
    cells = tuple(
        (
            cost.method,
            f"{cost.ratio:.2f}",
            f"{cost.low:.2f}-{cost.high:.2f}",
            f"{cost.trainings:g}",
            f"{cost.whole:.2f}",
        )
        for cost in costs
    )
    return TextTable(title, ("method", "a step", "range", "trainings", "in all"), cells)
