"""Cut a data set in deepteach's npz layout down to the size of the `cpu` scale.

    python experiments/cut_npz.py worse-10000.npz data/worse.npz --train 3000 --valid 400

Keeps the first rows of each true class, so that files that differ in their labels alone keep
the same rows. The test set stays whole.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Places of the first `count / classes` rows of each class, in the order they stand in."""
    classes, share = np.unique(labels), count // len(np.unique(labels))
    found = np.sort(np.concatenate([np.flatnonzero(labels == c)[:share] for c in classes]))
    if len(found) != count:
        raise SystemExit(f"{count} rows, as many of each class, are not there: {len(found)} are")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--valid", type=int, default=400)
    options = parser.parse_args()
    if options.out.exists():
        raise SystemExit(f"{options.out} exists: move it away")
    with np.load(options.source, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    truth = arrays.get("y_train_clean", arrays["y_train"])
    rows = {"train": first_of_each(truth, options.train),
            "valid": first_of_each(arrays["y_valid"], options.valid)}  # fmt: skip
    for name, array in arrays.items():
        part = name.partition("_")[2].partition("_")[0]
        arrays[name] = array[rows[part]] if part in rows else array
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, **arrays)  # pyright: ignore[reportArgumentType]
    print({name: array.shape for name, array in arrays.items()})


if __name__ == "__main__":
    main()
