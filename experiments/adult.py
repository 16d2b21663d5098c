"""UCI's Adult (adult.data, adult.test) in deepteach's npz layout, as the table `sources` reads it.

    python experiments/adult.py adult.data adult.test data/adult.npz

Columns: age, fnlwgt, years of education, log(1 + capital gain), log(1 + capital loss), hours a
week, then a column for each value of the other attributes, in sorted order. 1,000 rows of
adult.data, drawn with seed 0, are the trusted ones; adult.test are the test samples.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

NUMBERS, LOGS = (0, 2, 4, 10, 11, 12), (10, 11)
CHOICES = (1, 3, 5, 6, 7, 8, 9, 13)
TRUSTED = 1000


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file, skipinitialspace=True))
    return [row for row in rows if len(row) == 15]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("train", "test", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    parts = [read(options.train), read(options.test)]
    values = [sorted({row[c] for part in parts for row in part}) for c in CHOICES]

    def arrays(rows: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        columns = []
        for c in NUMBERS:
            numbers = np.array([float(row[c]) for row in rows])
            columns.append(np.log1p(numbers) if c in LOGS else numbers)
        for c, known in zip(CHOICES, values, strict=True):
            columns += [np.array([row[c] == value for row in rows]) for value in known]
        y = np.array([row[14].startswith(">") for row in rows], np.int64)
        return np.stack(columns, 1).astype(np.float32), y

    (x, y), (x_test, y_test) = map(arrays, parts)
    order = np.random.default_rng(0).permutation(len(y))
    valid, train = np.sort(order[:TRUSTED]), np.sort(order[TRUSTED:])
    np.savez_compressed(
        options.out,
        x_train=x[train],
        y_train=y[train],
        x_valid=x[valid],
        y_valid=y[valid],
        x_test=x_test,
        y_test=y_test,
    )
    print(f"{options.out}: {len(train)} / {len(valid)} / {len(y_test)} rows, {x.shape[1]} columns")


if __name__ == "__main__":
    main()
