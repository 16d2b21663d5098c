"""What checks by a person are worth: the least trusted samples beside random ones.

    python experiments/worth_of_checks.py  # digits, 40 % flips: results/checks.csv
    python experiments/worth_of_checks.py --trusted 50
    python experiments/worth_of_checks.py --npz worse.npz --student cnn --epochs 10

A run ranks its training samples. The first `checks` of that list, or as many drawn at random, are
answered by the truth and passed through `--decisions` to a second run of the same settings and as
many steps. Rows that stand in the table are kept, so it can be stopped and started again. An npz
needs y_train_clean; its given labels are used as they are.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np

from deepteach.data.dataset import Data
from deepteach.data.decisions import Decisions, decided
from deepteach.data.noise import corrupt
from deepteach.data.readers import load
from deepteach.report.export import ranked
from deepteach.runs.storage import csv_text, write_atomic
from deepteach.training.api import Result, run
from deepteach.training.config import make

CHECKS = (50, 100, 200, 400)
NAMED = ("data", "student", "epochs", "trusted", "seed", "order", "checks")
FIGURES = ("wrong_found", "test_accuracy_last", "test_accuracy_selected", "seconds")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--npz", type=Path, help="default: digits with 40 %% flips")
    parser.add_argument("--trusted", type=int, help="default: 200 of digits, all of an npz")
    parser.add_argument("--student", default="mlp")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--checks", type=int, nargs="+", default=CHECKS)
    parser.add_argument("--out", type=Path, default=Path("results/checks.csv"))
    asked = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    if asked.out.is_file():
        with asked.out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {tuple(row[name] for name in NAMED) for row in rows}

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        columns = (*NAMED, *FIGURES)
        text = csv_text([columns, *([row[name] for name in columns] for row in rows)])
        write_atomic(asked.out, text.encode())
        print(*row.values(), flush=True)

    for seed in range(asked.seeds):
        data = problem(asked.npz, asked.trusted, seed)
        assert data.y_clean is not None, "the truth must be known: give y_train_clean"
        place = "digits" if asked.npz is None else asked.npz.name
        shared = [place, asked.student, asked.epochs, len(data.y_valid), seed]
        cells = [("none", 0), *((o, k) for k in asked.checks for o in ("list", "random"))]
        if all(tuple(map(str, [*shared, *cell])) in done for cell in cells):
            continue
        wrong = data.task.differ(data.y_clean, data.y_train).numpy()
        truth = {
            int(r): str(t) for r, t in zip(data.rows, data.task.shown(data.y_clean), strict=True)
        }
        first = trained(data, asked.student, asked.epochs, seed)
        drawn = np.random.default_rng([seed, 7]).permutation(data.rows.numpy()).tolist()
        orders = {"none": [], "list": ranked(first.weights).columns["index"], "random": drawn}
        bad = set(data.rows.numpy()[wrong].tolist())
        for order, count in cells:
            if tuple(map(str, [*shared, order, count])) in done:
                continue
            chosen = orders[order][:count]
            checked = decided(data, Decisions({row: truth[row] for row in chosen}))
            # Fewer training samples make shorter epochs: as many steps for all.
            epochs = round(asked.epochs * len(data.y_train) / len(checked.y_train))
            result = trained(checked, asked.student, epochs, seed) if count else first
            summary = result.summary
            figures = [len(bad & set(chosen)), *(f"{summary[name]:.4f}" for name in FIGURES[1:3])]
            keep(
                dict(
                    zip(
                        (*NAMED, *FIGURES),
                        [*shared, order, count, *figures, summary["seconds"]],
                        strict=True,
                    )
                )
            )


def problem(npz: Path | None, trusted: int | None, seed: int) -> Data:
    """Digits with 40 % of the labels flipped, or an npz as it is."""
    if npz is not None:
        return load(f"npz:{npz}", seed, trusted)
    return corrupt(load("digits", seed, trusted), "flip", 0.4, seed)


def trained(data: Data, student: str, epochs: int, seed: int) -> Result:
    """The default method on these data."""
    settings = {"data": "checks", "noise": {"kind": "none", "rate": 0.0}, "student": student}
    settings |= {"epochs": epochs, "seed": seed, "baseline": False, "threads": 1}
    return run(make(settings), data)


if __name__ == "__main__":
    main(sys.argv[1:])
