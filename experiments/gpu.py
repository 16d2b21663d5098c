"""What a CUDA machine says: the tests that need one, what teaching costs there, Table 6.

    python experiments/gpu.py                                  # every piece, one after another
    python experiments/gpu.py tests                            # the tests that are marked `cuda`
    python experiments/gpu.py bench --minutes 3                # rows of `deepteach bench`
    python experiments/gpu.py table6 --minutes 8 --data cifar10_jpeg.npz --jobs 8

Each piece writes a file of --out (results/gpu/tests.csv, bench.csv, table6.csv) whose rows name
the device, torch, the commit and the command, goes on with what is there, and ends within
--minutes (Table 6: and what its runs then take to commit). Nothing is downloaded. Without a CUDA
device that is said, every piece runs on the CPU at a size that only shows that it works, and what
it writes goes to a temporary folder.

Table 6 takes CIFAR-10 from --data: the folder of its binary version, or an npz of `x_train`,
`y_train`, `x_test`, `y_test` with images `(n, 32, 32, 3)`; an npz of `jpeg_header` and, by part,
`jpeg_data_PART` and `jpeg_len_PART` holds JPEGs that share a header, which Pillow decodes. Its
runs are those of `deepteach reproduce table6 --scale paper`, several at a time on the one device,
in the order of `ORDER`. They are stopped when the time is over, after a committed checkpoint, and
go on from there next time; the rows say how many epochs were done.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepteach.benchmarks.plan import Plan
from deepteach.benchmarks.records import read_costs
from deepteach.benchmarks.update_cost import UpdateCost, measure_updates
from deepteach.reproduction.cell import Cell
from deepteach.reproduction.runner import arguments, commit
from deepteach.reproduction.scale import SCALES
from deepteach.reproduction.tables import table6
from deepteach.runs.storage import csv_text, write_atomic

ROOT = Path(__file__).resolve().parent.parent
PIECES = ("tests", "bench", "table6")
STUDENTS = (("mlp", 64), ("cnn", 64), ("resnet8", 64), ("resnet32", 32), ("resnet32", 128))
"""Students of the bench and their batches, the cheapest first."""

ORDER = ("uniform", "deep", "paper", "fine-tune", "mwn", "mentornet", "merged", "trusted-only")
"""Methods of Table 6, those that say most first."""

DRY_TESTS = "(own_unroll and mlp-stopped) or same_seed"
GRACE = 45
"""Seconds that stopped runs may take to commit."""


class Place:
    """Where a piece runs and writes, and until when."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.cuda: bool = torch.cuda.is_available()
        self.options, self.out = options, out
        self.end = time.monotonic() + 60 * options.minutes
        self.started = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def labels(self, command: str = "") -> dict[str, Any]:
        """What every row says of where it comes from."""
        given = self.options.command or shlex.join(["python", *sys.argv])
        return {
            "device": torch.cuda.get_device_name() if self.cuda else "cpu",
            "torch": torch.__version__,
            "commit": self.options.commit or commit(),
            "command": command or given,
        }

    def write(self, piece: str, rows: list[dict[str, Any]]) -> Path:
        """Replace the piece's file."""
        path = self.out / f"{piece}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = csv_text([names, *([str(row.get(name, "")) for name in names] for row in rows)])
        write_atomic(path, text.encode())
        return path


def _environment() -> dict[str, str]:
    """Of the processes that are started."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


# --- tests -------------------------------------------------------------------------------------


def tests(place: Place) -> Path:
    """The tests of the suite that are marked `cuda`, in as many processes as help."""
    files = [
        p
        for p in sorted((ROOT / "tests").rglob("test_*.py"))
        if "from devices import" in p.read_text()
    ]
    report = place.out / "tests.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    chosen = ["-m", "cuda"] if place.cuda else ["-k", DRY_TESTS]
    several = place.cuda and find_spec("xdist") is not None
    spread = ["-n", str(min(10, os.cpu_count() or 1)), "--dist", "worksteal"] if several else []
    plugins = ["-p", "no:cacheprovider", "-p", "no:benchmark"]  # which warns beside xdist
    plugins += ["-p", "xdist"] if several else []
    command = [
        sys.executable,
        "-m",
        "pytest",
        *chosen,
        *spread,
        *plugins,
        "--tb=short",
        f"--junitxml={report}",
    ]
    relative = [str(path.relative_to(ROOT)) for path in files]
    process = subprocess.Popen([*command, *relative], cwd=ROOT, env=_environment())
    try:
        process.wait(max(place.left, 1))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # what was found until now is written
        process.wait(GRACE)
    rows = [{**row, **place.labels()} for row in _cases(report)] if report.exists() else []
    report.unlink(missing_ok=True)
    outcomes = [row["outcome"] for row in rows]
    found = {name: outcomes.count(name) for name in dict.fromkeys(outcomes)}
    print(f"tests: {found} in {time.monotonic() - place.started:.0f} s")
    return place.write("tests", rows)


def _cases(report: Path) -> Iterator[dict[str, Any]]:
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = [child for child in case if child.tag in ("failure", "error", "skipped")]
        told = (kinds[0].get("message") or "").split("\n")[0][:200] if kinds else ""
        file = (case.get("classname") or "").replace(".", "/") + ".py"
        yield {
            "test": f"{file}::{case.get('name')}",
            "outcome": kinds[0].tag if kinds else "passed",
            "seconds": f"{float(case.get('time') or 0):.2f}",
            "message": told,
        }


# --- what teaching costs -----------------------------------------------------------------------


def bench(place: Place) -> Path:
    """Rows of `deepteach bench`, student by student, as far as the time goes."""
    path = place.out / "bench.csv"
    rows = _rows_of(path)
    plans = [
        Plan(student, batch, repeats=3, windows=(2, 1, 20), device="cuda")
        for student, batch in STUDENTS
    ]
    if not place.cuda:
        plans = [replace(Plan("mlp", 4).shortened(), repeats=1, interval=2)]
    for plan in plans:
        own = [r for r in rows if (r["student"], r["batch"]) == (plan.student, str(plan.batch))]
        rows = _measured(place, plan, own, rows)
        if place.left <= 0:
            break
    print(f"bench: {len(rows)} rows in {time.monotonic() - place.started:.0f} s")
    return path


def _measured(
    place: Place, plan: Plan, own: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """All rows, those of a plan that were missing among them, written as they come."""
    names = set(UpdateCost.__dataclass_fields__)
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "bench.csv"
        if own:
            kept = [{n: row[n] for n in row if n in names} for row in own]
            known.write_text(csv_text([list(kept[0]), *([*row.values()] for row in kept)]))
        done = read_costs(known) if own else []
    started = time.monotonic()
    for cost in measure_updates(plan, done=done):
        values = {n: f"{v:.4g}" if isinstance(v, float) else v for n, v in asdict(cost).items()}
        seconds = {"seconds": f"{time.monotonic() - started:.1f}"}
        rows = [
            *rows,
            {**{n: "" if v is None else v for n, v in values.items()}, **place.labels(), **seconds},
        ]
        place.write("bench", rows)
        started = time.monotonic()
        if place.left <= 0 or (not place.cuda and len(rows) >= 2):
            break
    return rows


def _rows_of(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- Table 6 -----------------------------------------------------------------------------------


def table6_runs(place: Place) -> Path:
    """Runs of Table 6, `--jobs` at a time, until the time is over."""
    runs = Path(place.options.runs or (place.out if not place.cuda else "runs/gpu"))
    data = cifar(place.options.data, runs) if place.cuda else None
    cells = ordered(_cells(place), place.options.methods)
    flags = {cell.folder: arguments(cell, data, runs / "table6") for cell in cells}
    waiting = [c for c in cells if not (runs / "table6" / c.folder / "summary.json").exists()]
    running: dict[str, subprocess.Popen[bytes]] = {}
    jobs = place.options.jobs
    while running or waiting:
        for name in [n for n, process in running.items() if process.poll() is not None]:
            if running.pop(name).returncode:
                print(f"table6: {name} failed, see {runs / 'logs' / name}.log")
        if place.left <= 0:
            break
        while waiting and len(running) < jobs:
            name = waiting.pop(0).folder
            running[name] = _started(flags[name], runs / "logs" / f"{name}.log")
        time.sleep(0.2)
    _stop(running)
    rows = [
        row for cell in cells if (row := _row(place, cell, runs / "table6", flags[cell.folder]))
    ]
    print(f"table6: {len(rows)} of {len(cells)} runs in {time.monotonic() - place.started:.0f} s")
    return place.write("table6", rows)


def _cells(place: Place) -> list[Cell]:
    if not place.cuda:
        return [c for c in table6(SCALES["smoke"]) if c.method == "paper" and c.rate == 0.4]
    packed = _packed(place.options.data)
    return paper_cells(place.options.label or ("CIFAR-10 (JPEG)" if packed else "CIFAR-10"))


def paper_cells(label: str) -> list[Cell]:
    """The cells of CIFAR-10, called `label`."""
    paper = SCALES["paper"]
    return table6(replace(paper, data={"CIFAR-10": (label, paper.data["CIFAR-10"][1])}))


def ordered(cells: list[Cell], methods: str | None) -> list[Cell]:
    """By seed, then 40 % before 20 %, then by what says most."""
    order = methods.split(",") if methods else ORDER
    chosen = [cell for cell in cells if cell.method in order]
    return sorted(chosen, key=lambda c: (c.seed, -c.rate, order.index(c.method)))


def _started(flags: list[str], log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    out = Path(flags[-1])
    resumed = ["--resume"] if (out / "config.yaml").exists() else []
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "deepteach", *flags, *resumed],
            stdout=file, stderr=subprocess.STDOUT, env=_environment(),
        )  # fmt: skip


def _stop(running: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in running.values():
        process.terminate()  # a run commits what it has done
    end = time.monotonic() + GRACE
    for process in running.values():
        try:
            process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()


def _row(place: Place, cell: Cell, runs: Path, flags: list[str]) -> dict[str, Any] | None:
    """How far a run has come; None where it has done no epoch."""
    folder = runs / cell.folder
    lines = folder / "metrics.jsonl"
    if not lines.exists():
        return None
    ends = [json.loads(line) for line in lines.read_text().splitlines() if line.strip()]
    if not ends:
        return None
    errors = [100 * (1 - end["test_accuracy"]) for end in ends]
    summary = folder / "summary.json"
    whole = json.loads(summary.read_text()) if summary.exists() else {}
    return {
        **{name: getattr(cell, name) for name in ("data", "noise", "rate", "student", "method")},
        "variant": cell.variant,
        "seed": cell.seed,
        "epochs_done": len(ends),
        "epochs": cell.settings["epochs"],
        "finished": bool(whole),
        "test_error_last": f"{errors[-1]:.2f}",
        "test_error_best": f"{min(errors):.2f}",
        "noise_auroc": "" if whole.get("noise_auroc") is None else f"{whole['noise_auroc']:.4f}",
        "seconds": f"{whole['seconds']:.0f}" if whole else "",
        **place.labels("deepteach " + shlex.join(flags)),
        "published": "" if cell.published is None else cell.published,
    }


# --- CIFAR-10 ----------------------------------------------------------------------------------


def _packed(data: str | None) -> bool:
    if data is None or not data.endswith(".npz"):
        return False
    with np.load(data, allow_pickle=False) as found:
        return "jpeg_header" in found.files


def cifar(data: str | None, runs: Path) -> Path:
    """The folder that holds `cifar10`, CIFAR's binary version; made from an npz once."""
    if data is None:
        raise SystemExit("table6 needs --data: CIFAR-10's binary folder, or an npz of its images")
    if not data.endswith(".npz"):
        path = runs / "data"
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "cifar10").exists():
            (path / "cifar10").symlink_to(Path(data).resolve(), target_is_directory=True)
        return path
    place = runs / "data" / "cifar10"
    if not (place / "test_batch.bin").exists():
        place.mkdir(parents=True, exist_ok=True)
        with np.load(data, allow_pickle=False) as found:
            parts = {name: (_images(found, name), found[f"y_{name}"]) for name in ("train", "test")}
        x, y = parts["train"]
        for i, rows in enumerate(np.array_split(np.arange(len(x)), 5), 1):
            _write(place / f"data_batch_{i}.bin", x[rows], y[rows])
        _write(place / "test_batch.bin", *parts["test"])
    return place.parent


def _images(found: Any, part: str) -> np.ndarray:
    """`(n, 32, 32, 3)` bytes."""
    if f"x_{part}" in found.files:
        return found[f"x_{part}"]
    from PIL import Image

    header, raw = found["jpeg_header"].tobytes(), found[f"jpeg_data_{part}"].tobytes()
    ends = np.cumsum(found[f"jpeg_len_{part}"], dtype=np.int64)
    starts = [0, *ends[:-1].tolist()]
    pairs = zip(starts, ends.tolist(), strict=True)
    return np.stack([np.asarray(Image.open(io.BytesIO(header + raw[a:b]))) for a, b in pairs])


def _write(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    pixels = x.transpose(0, 3, 1, 2).reshape(len(x), -1).astype(np.uint8)
    write_atomic(path, np.concatenate([y.astype(np.uint8)[:, None], pixels], 1).tobytes())


RUN = {"tests": tests, "bench": bench, "table6": table6_runs}


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("piece", nargs="?", choices=PIECES, help="all of them unless named")
    parser.add_argument("--minutes", type=float, default=4.0, help="of each piece")
    parser.add_argument("--out", metavar="DIR", help="default: results/gpu")
    parser.add_argument("--runs", metavar="DIR", help="of the runs of Table 6; default: runs/gpu")
    parser.add_argument("--data", metavar="PATH", help="CIFAR-10, for table6")
    parser.add_argument("--label", metavar="NAME", help="how the rows name that data")
    parser.add_argument("--jobs", type=int, default=8, help="runs of Table 6 at a time")
    parser.add_argument("--methods", metavar="A,B", help="of Table 6, in this order")
    parser.add_argument("--commit", help="what the rows name, where git does not know it")
    parser.add_argument("--command", help="what the rows name; default: this call")
    options = parser.parse_args(given)
    pieces = [options.piece] if options.piece else list(PIECES)
    with tempfile.TemporaryDirectory() as folder:
        if not torch.cuda.is_available():
            print("no CUDA device: a dry run on the CPU, which only shows that every piece works")
        kept = options.out or (folder if not torch.cuda.is_available() else "results/gpu")
        for piece in pieces:
            path = RUN[piece](Place(options, Path(kept)))
            print(f"written: {path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
