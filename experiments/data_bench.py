"""Images a second and peak memory: a DataLoader loop written by hand, and `deepteach train`.

    python experiments/data_bench.py --images 10000 --repeats 3 --out results/data.csv
    python experiments/data_bench.py --images 200000 --ways deepteach --method deep --epochs 1

JPEGs of noise are written, with their list. Then each way trains plainly on them in a process of
its own: the same student, rate, batches and workers, images decoded when they are needed. The
first epoch warms up; of the others, if there are any, the median counts. `cpu` is of the training
process, which other work on the machine disturbs less than the clock; with `--workers 0` it is
all there is. Memory is the peak of the training process and of its largest worker.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deepteach.data.readers import load
from deepteach.models import build
from deepteach.reproduction.runner import commit
from deepteach.training.api import run
from deepteach.training.config import make
from deepteach.training.progress import Silent

CLASSES, BATCH, LR, TRUSTED = 10, 128, 0.05, 200


def write_jpegs(folder: Path, count: int, size: int) -> Path:
    """Coarse noise, so that files are as large as photographs of that size; list.csv."""
    draw = np.random.default_rng(0)
    lines = ["path,label,split"]
    for i in range(count + TRUSTED):
        place = folder / f"{i // 1000:04d}"
        place.mkdir(exist_ok=True)
        coarse = draw.integers(256, size=(max(2, size // 4),) * 2 + (3,), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR)
        image.save(place / f"{i}.jpg", quality=85)
        part = "valid" if i < TRUSTED else "train"
        lines.append(f"{place.name}/{i}.jpg,{i % CLASSES},{part}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


class Listed(Dataset[Any]):
    """What somebody would write who needs no teacher."""

    def __init__(self, listing: Path) -> None:
        rows = list(csv.DictReader(listing.open()))
        rows = [row for row in rows if row["split"] == "train"]
        self.folder = listing.parent
        self.files = np.array([row["path"] for row in rows])
        self.labels = np.array([int(row["label"]) for row in rows])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        with Image.open(self.folder / str(self.files[row])) as image:
            pixels = np.asarray(image.convert("RGB"))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1), int(self.labels[row])


class Clocks(Silent):
    """Both clocks at the end of every epoch."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.per_epoch = 0

    def step(self, step: int) -> None:
        if step % self.per_epoch == 0:
            self.ends.append((time.perf_counter(), time.process_time()))

    def seconds(self) -> list[float]:
        """Medians of an epoch after the first: by the clock, and of the processor."""
        ends = np.array(self.ends)
        if len(ends) < 2:
            return []
        return np.median(np.diff(ends, axis=0), axis=0).tolist()


def loop(listing: Path, size: int, workers: int, epochs: int, student: str, method: str) -> Clocks:
    data, clocks = Listed(listing), Clocks()
    module, _ = build(student, (3, size, size), CLASSES, 0)
    optimizer = torch.optim.SGD(module.parameters(), LR, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    clocks.per_epoch, step = len(loader), 0
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module((x.float() - 127.5) / 64), y)
            loss.backward()
            optimizer.step()
            step += 1
            clocks.step(step)
    return clocks


def deepteach(
    listing: Path, size: int, workers: int, epochs: int, student: str, method: str
) -> Clocks:
    """What `deepteach train --method uniform --data manifest:...` calls."""
    clocks = Clocks()
    with tempfile.TemporaryDirectory() as place:
        config = make(
            {
                "data": f"manifest:{listing}", "method": method, "student": student,
                "epochs": epochs, "batch_size": BATCH, "lr": LR, "schedule": "constant",
                "evaluate_every": epochs, "workers": workers, "baseline": False, "augment": False,
                "out": f"{place}/run",
            }
        )  # fmt: skip
        data = load(config.data, config.seed, workers=workers)
        clocks.per_epoch = -(-len(data.y_train) // BATCH)
        run(config, data, watch=lambda *_: nullcontext(clocks))
    return clocks


WAYS = {"loop": loop, "deepteach": deepteach}


def measured(way: str, listing: Path, *asked: Any) -> dict[str, Any]:
    """One way in this process."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    clocks = WAYS[way](listing, *asked)
    seconds = clocks.seconds()
    count = len(Listed(listing))
    # Not `ru_maxrss`: that of a new process begins with its parent's.
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert peak is not None
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "images_per_second": round(count / seconds[0], 1) if seconds else None,
        "cpu_ms_per_image": round(1000 * seconds[1] / count, 4) if seconds else None,
        "total_seconds": round(time.perf_counter() - started, 1),
        "peak_mib": round(int(peak[1]) / 1024),
        "worker_peak_mib": round(workers / 1024) if asked[1] else 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--student", default="cnn")
    parser.add_argument("--method", default="uniform", help="of deepteach")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=[*WAYS], help="measure one way on --listing, and print it")
    parser.add_argument("--listing", type=Path)
    given = parser.parse_args()
    if given.way:
        how = (given.size, given.workers, given.epochs, given.student, given.method)
        found = measured(given.way, given.listing, *how)
        print(json.dumps(found))
        return
    version = commit()
    asked = {key: getattr(given, key) for key in ("images", "size", "workers", "student", "method")}
    command = " ".join(["python", *sys.argv])
    with tempfile.TemporaryDirectory() as folder:
        listing = write_jpegs(Path(folder), given.images, given.size)
        lines = []
        for repeat in range(given.repeats):
            for way in given.ways:
                options = [f"--{k}={v}" for k, v in asked.items()]
                options += [f"--way={way}", f"--listing={listing}", f"--epochs={given.epochs}"]
                done = subprocess.run(
                    [sys.executable, __file__, *options], stdout=subprocess.PIPE, check=True
                )
                found = json.loads(done.stdout.splitlines()[-1])
                lines.append({"way": way, "repeat": repeat, **asked, **found})
                print(lines[-1], flush=True)
    for key in ("images_per_second", "cpu_ms_per_image") if len(given.ways) == 2 else ():
        of = {w: statistics.median(x[key] for x in lines if x["way"] == w) for w in WAYS}
        print(f"{key}: deepteach / loop = {of['deepteach'] / of['loop']:.3f}")
    if given.out is not None:
        new = not given.out.exists()
        with given.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, [*lines[0], "commit", "command"])
            if new:
                writer.writeheader()
            writer.writerows({**line, "commit": version, "command": command} for line in lines)


if __name__ == "__main__":
    main()
