"""A million rows and an MLP from end to end: time, memory, and what a run writes.

    python experiments/million.py --out results/million.csv

Rows of 64 float32 and one of 10 classes, 30 % of the labels wrong, are drawn and written, as an
npz archive and as a flat file. Each way of reading and each method then trains in a process of
its own, one epoch: `npz` is `deepteach train --data npz:PATH`, which holds the archive in memory,
`dataset` is `dt.train` on a map-style Dataset that reads a row of the flat file when it is asked
for. Memory is the peak resident memory of that process; `start` is what it held when torch and the
package were imported, `data` what the rows and labels take as arrays. `seconds` is of the whole
command, `cpu_seconds` what of it the process worked (other work on the machine disturbs that less),
`training_seconds` of the epoch. A line that is there already is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from csv_rows import append
from torch import Tensor
from torch.utils.data import Dataset

import deepteach as dt
from deepteach.cli import main as deepteach
from deepteach.reproduction.runner import commit

FEATURES, CLASSES, WRONG, TRUSTED, TEST, BATCH = 64, 10, 0.3, 1000, 10_000, 512
PARTS = ("train", "valid", "test")
SETTINGS = {"epochs": 1, "batch_size": BATCH, "baseline": False, "threads": 1}
FIELDS = (
    *("samples", "way", "method", "seed", "seconds", "cpu_seconds", "training_seconds"),
    *("start_mib", "peak_mib", "data_mib", "folder_mib", "files", "test_accuracy", "noise_auroc"),
    *("torch", "threads", "commit", "command"),
)


def drawn(samples: int, seed: int) -> dict[str, np.ndarray]:
    """Three clouds a class, which overlap; a wrong label is any other class."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(0, 0.75, (CLASSES, 3, FEATURES)).astype(np.float32)
    found = {}
    for part, count in zip(PARTS, (samples, TRUSTED, TEST), strict=True):
        y = draw.integers(CLASSES, size=count)
        x = draw.standard_normal((count, FEATURES), dtype=np.float32) * 1.5
        x += centres[y, draw.integers(3, size=count)]
        found |= {f"x_{part}": x, f"y_{part}": y}
    hit = draw.random(samples) < WRONG
    found["y_train_clean"] = found["y_train"]
    moved = (found["y_train"] + draw.integers(1, CLASSES, size=samples)) % CLASSES
    found["y_train"] = np.where(hit, moved, found["y_train"])
    return found


class Flat(Dataset[Any]):
    """Rows of a file of float32, each read when it is asked for."""

    def __init__(self, path: Path, labels: np.ndarray) -> None:
        self.file, self.labels = os.open(path, os.O_RDONLY), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        size = 4 * FEATURES
        read = bytearray(os.pread(self.file, size, size * row))
        return torch.frombuffer(read, dtype=torch.float32), int(self.labels[row])


def from_npz(place: Path, method: str, seed: int, out: Path) -> None:
    options = [f"--{key}={str(value).lower()}" for key, value in SETTINGS.items()]
    options += ["--student=mlp", f"--method={method}", f"--seed={seed}", f"--out={out}"]
    if code := deepteach(["train", f"--data=npz:{place / 'rows.npz'}", *options]):
        raise SystemExit(code)


def from_dataset(place: Path, method: str, seed: int, out: Path) -> None:
    with np.load(place / "rows.npz") as archive:
        known = {key: archive[key] for key in archive.files if key != "x_train"}
    rows = Flat(place / "rows.bin", known["y_train"])
    given = [(known[f"x_{part}"], known[f"y_{part}"]) for part in ("valid", "test")]
    settings = {**SETTINGS, "y_clean": known["y_train_clean"], "seed": seed, "out": out}
    dt.train("mlp", rows, *given, teacher=method, **settings)


WAYS = {"npz": from_npz, "dataset": from_dataset}


def resident(which: str) -> float:
    """Resident memory in MiB: `VmRSS` now, `VmHWM` at most."""
    found = re.search(rf"{which}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


def measured(way: str, place: Path, method: str, seed: int) -> dict[str, Any]:
    """One training in this process."""
    out, start = place / f"{way}-{method}", resident("VmRSS")
    began, busy = time.perf_counter(), time.process_time()
    WAYS[way](place, method, seed, out)
    seconds, cpu = time.perf_counter() - began, time.process_time() - busy
    peak = resident("VmHWM")
    summary = json.loads((out / "summary.json").read_text())
    sizes = {p: p.stat().st_size / 2**20 for p in sorted(out.rglob("*")) if p.is_file()}
    large = [f"{p.relative_to(out)} {size:.1f}" for p, size in sizes.items() if size >= 0.1]
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "training_seconds": summary["seconds"],
        "start_mib": round(start),
        "peak_mib": round(peak),
        "folder_mib": round(sum(sizes.values()), 1),
        "files": "; ".join(large),
        "test_accuracy": round(summary["test_accuracy_last"], 4),
        "noise_auroc": round(summary["noise_auroc"], 4),
    }


def written(samples: int, seed: int, place: Path) -> float:
    """MiB of the rows and labels in `place`, as they are in memory."""
    found = drawn(samples, seed)
    found["x_train"].tofile(place / "rows.bin")
    np.savez(place / "rows.npz", **found)  # type: ignore[arg-type]
    return sum(array.nbytes for array in found.values()) / 2**20


def known(path: Path) -> list[tuple[str, ...]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [tuple(row[key] for key in FIELDS[:4]) for row in csv.DictReader(file)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--methods", nargs="+", default=["uniform", "deep"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/million.csv"))
    parser.add_argument("--way", choices=[*WAYS], help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.way:
        torch.set_num_threads(1)
        found = measured(given.way, given.place, given.methods[0], given.seed)
        print(json.dumps(found), flush=True)
        return 0
    version = commit()
    own = arguments if arguments is not None else sys.argv[1:]
    command = " ".join(["python", "experiments/million.py", *own])
    for samples in given.samples:
        cases = [(way, method) for way in given.ways for method in given.methods]
        done = known(given.out)
        cases = [c for c in cases if (str(samples), *c, str(given.seed)) not in done]
        if not cases:
            continue
        with tempfile.TemporaryDirectory() as place:
            size = written(samples, given.seed, Path(place))
            for way, method in cases:
                options = [f"--way={way}", "--methods", method, f"--seed={given.seed}"]
                child = [sys.executable, __file__, *options, f"--place={place}"]
                ended = subprocess.run(child, stdout=subprocess.PIPE, check=True)
                found = json.loads(ended.stdout.splitlines()[-1])
                line = {
                    "samples": samples, "way": way, "method": method, "seed": given.seed, **found,
                    "data_mib": round(size), "torch": torch.__version__, "threads": 1,
                    "commit": version, "command": command,
                }  # fmt: skip
                print({key: line[key] for key in FIELDS[:14]}, flush=True)
                append(given.out, FIELDS, line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
