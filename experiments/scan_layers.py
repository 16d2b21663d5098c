"""Is the meta-gradient exact through every layer of torch.nn?

    python experiments/scan_layers.py            # all layers, results/layers.csv
    python experiments/scan_layers.py GRU        # those with GRU in their name, printed as well
    python experiments/fill_docs.py              # the table into docs/correctness.md

Each layer stands in a small float64 student that is trained for a few steps of SGD with
momentum. The meta-gradients of windows of 1, 2 and 8 steps are compared with differences of
the trusted loss after plain training with a moved teacher. What torch has and no recipe
names is told, and the exit code is 1; so it is for an error above the bound.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from scan_engine import BOUND, EXACT, FAILED, WINDOWS, Finding, examine, problem_of
from scan_functionals import FUNCTIONALS
from scan_functionals import LEFT_OUT as NO_FUNCTIONALS
from scan_losses import MODULE_LOSSES
from scan_modules import LEFT_OUT as NO_MODULES
from scan_modules import MODULES
from scan_recipe import Recipe, unscanned

RECIPES = [*MODULES, *MODULE_LOSSES, *FUNCTIONALS]
LEFT_OUT = {**NO_MODULES, **NO_FUNCTIONALS}
COLUMNS: tuple[str, ...] = ("layer", "window", "outcome", "error", "doubt", "size", "said", "torch")
CSV = Path("results/layers.csv")


def wrong(recipe: Recipe, found: Finding) -> bool:
    """Off by more than the bound without a word, or an error of torch's that was let through."""
    silent = found.outcome == EXACT and not (found.error <= BOUND and found.doubt <= BOUND)
    return (silent and not recipe.note) or found.outcome == FAILED


def row(recipe: Recipe, window: int, found: Finding) -> dict[str, str]:
    numbers = {n: f"{getattr(found, n):.1e}" for n in ("error", "doubt", "size")}
    known = found.outcome == EXACT
    return {
        "layer": recipe.name,
        "window": str(window),
        "outcome": recipe.note if known and recipe.note else found.outcome,
        **(numbers if known else dict.fromkeys(numbers, "")),
        "said": found.said,
        "torch": torch.__version__,
    }


def scan(recipes: list[Recipe]) -> Iterator[tuple[Recipe, int, Finding]]:
    for recipe in recipes:
        for window in WINDOWS:
            yield recipe, window, examine(problem_of(recipe, window))


def write(rows: list[dict[str, str]], *, keep: bool) -> None:
    """In the order of the recipes; with `keep`, what the file has of other recipes stays."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    if keep and CSV.exists():
        with CSV.open(newline="") as file:
            found = {(r["layer"], r["window"]): r for r in csv.DictReader(file)}
    found |= {(r["layer"], r["window"]): r for r in rows}
    ordered = [(recipe.name, str(window)) for recipe in RECIPES for window in WINDOWS]
    with CSV.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found[key] for key in ordered if key in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", default="", help="only layers with this in their name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started, bad, rows = time.process_time(), 0, []
    chosen = [r for r in RECIPES if options.name in r.name]
    for recipe, window, found in scan(chosen):
        rows.append(row(recipe, window, found))
        if wrong(recipe, found) or options.name:
            print("  ".join(f"{value}" for value in rows[-1].values()), flush=True)
        bad += wrong(recipe, found)
    missing = unscanned(RECIPES, LEFT_OUT)
    for name in missing:
        print(f"not scanned: {name}")
    write(rows, keep=bool(options.name))
    print(f"{len(chosen)} layers, {bad} wrong; {time.process_time() - started:.0f} s of one core")
    return 1 if bad or missing else 0


if __name__ == "__main__":
    sys.exit(main())
