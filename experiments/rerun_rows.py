"""Run the commands of some rows of the committed results again, and compare every figure.

    python experiments/rerun_rows.py results/table6.csv --rows 3 --data data

Rows are drawn at random (`--seed`). A row that takes the teacher or the weights of another run
runs that one first, by its own row in one of the files beside. Bits are only promised on the
machine, the version of torch and the number of threads that a row was made with: elsewhere
the figures differ by what one rounding does to a whole training.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import tempfile
from pathlib import Path

from deepteach.cli import main as deepteach
from deepteach.reproduction.runner import figures_of, read_csv


def after(flag: str, words: list[str]) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


def run(words: list[str], known: dict[str, list[str]]) -> Path:
    """The folder of the finished run, its source trained before it."""
    folder = Path(after("--out", words) or "")
    if not (folder / "summary.json").exists():
        source = after("--teacher_from", words)
        if source is not None:
            run(known[source], known)
        if deepteach(words) != 0:
            raise SystemExit(f"failed: deepteach {shlex.join(words)}")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args()
    rows = read_csv(options.table)
    chosen = random.Random(options.seed).sample(rows, min(options.rows, len(rows)))
    every = [row for path in options.table.parent.glob("*.csv") for row in _results(path)]
    known = {after("--out", words) or "": words for words in map(_words, every)}
    data = options.data.resolve()
    different = 0
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        Path("data").symlink_to(data)
        for row in chosen:
            summary = run(_words(row), known) / "summary.json"
            found = figures_of(json.loads(summary.read_text()))
            pairs = {name: (row[name], value) for name, value in found.items() if name in row}
            wrong = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
            different += bool(wrong)
            print(f"{row['command']}\n  {wrong or 'the same figures'}", flush=True)
        os.chdir(data.parent)
    print(f"{len(chosen) - different} of {len(chosen)} rows gave the same figures")
    raise SystemExit(1 if different else 0)


def _words(row: dict[str, str]) -> list[str]:
    return shlex.split(row["command"])[1:]


def _results(path: Path) -> list[dict[str, str]]:
    """The rows of a file of this kind; other files of the folder have other columns."""
    with path.open() as file:
        return read_csv(path) if file.readline().startswith("table,") else []


if __name__ == "__main__":
    main()
