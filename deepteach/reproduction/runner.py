"""Run the cells of a table, each in a folder of its own, and tell what came out.

A cell is the command `deepteach train ...` that stands in its row, run by a pool of
processes or by Ray; there is no scheduler here. Its folder is named after its settings, so
cells that tables share run once, a finished one is never run again, and an interrupted one
goes on from its checkpoint.
"""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deepteach import __version__
from deepteach.errors import ConfigError, DataError
from deepteach.reproduction.cell import Cell
from deepteach.reproduction.launch import Entry, Executor, Job, by_processes
from deepteach.runs.storage import csv_text, probe_writable, write_atomic
from deepteach.training.progress import Output

COLUMNS = (
    "table data noise rate student method variant seed test_error_last test_error_best "
    "test_error_selected noise_auroc seconds command commit"
).split()
KINDS = ("last", "best", "selected")
EMA_COLUMNS = tuple(f"test_error_ema_{kind}" for kind in KINDS)
"""Columns behind the others, in a file where any run kept a moving average of its student."""
RANKING_COLUMNS = ("noise_precision_100", "noise_precision_1000", "loss_auroc", "quality_auroc")
"""Columns behind those, in a file of a table that asks how well wrong labels are found."""
_MORE = (EMA_COLUMNS, RANKING_COLUMNS)
COMMANDS, LOGS = "commands", "logs"
"""Folders in `--out` beside the runs."""


@dataclass(frozen=True)
class Failure:
    """A run that ended with another code than 0, and why."""

    name: str
    code: int
    reason: str


def runs_of(cells: Sequence[Cell]) -> list[Cell]:
    """The different runs behind the cells, sources included: by rank, then by seed."""
    found: dict[str, Cell] = {}
    for cell in cells:
        for one in (cell.source, cell):
            if one is not None:
                found.setdefault(one.folder, one)
    return sorted(found.values(), key=lambda cell: (cell.rank, cell.seed))


def arguments(cell: Cell, data: Path | None, out: Path) -> list[str]:
    """The arguments of `deepteach` for this cell, the data folder and source put in place."""
    settings = dict(cell.settings)
    scheme, colon, name = str(settings["data"]).partition(":")
    if colon and data is not None:
        settings["data"] = f"{scheme}:{data / name}"
    if cell.source is not None:
        settings["teacher_from"] = str(out / cell.source.folder)
    flags = ["train", "--no-report"]
    for key, value in settings.items():
        nested = value.items() if isinstance(value, Mapping) else [("", value)]
        for part, single in nested:
            flags += [f"--{key}.{part}" if part else f"--{key}", _text(single)]
    return [*flags, "--out", str(out / cell.folder)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def is_finished(cell: Cell, out: Path) -> bool:
    """Whether its summary is there: the last file that a run writes."""
    return (out / cell.folder / "summary.json").is_file()


def require_data(cells: Sequence[Cell], data: Path | None) -> None:
    """Raises DataError, before anything runs, where a data set is not there."""
    names = {str(cell.settings["data"]).partition(":")[2] for cell in cells} - {""}
    missing = sorted(name for name in names if data is None or not (data / name).exists())
    if not missing:
        return
    where = "no --data was given" if data is None else f"not in --data {data}"
    what = (
        "an npz of x_train, y_train, x_valid, y_valid, x_test, y_test[, y_train_clean]"
        if missing[0].endswith(".npz")
        else "the folder of CIFAR's binary version"
    )
    raise DataError(
        f"this table needs {', '.join(missing)} ({where}): put {what} there under this name, "
        "see docs/results.md"
    )


def execute(
    cells: Sequence[Cell],
    data: Path | None,
    out: Path,
    entry: Entry,
    *,
    jobs: int = 1,
    executor: Executor | None = None,
    console: Console | None = None,
    done: Callable[[], None] = lambda: None,
) -> list[Failure]:
    """Run what is not finished; `done` is called after each run. Returns what failed.

    Raises:
        DataError: a data set is missing. StorageError: `out` cannot be written.
    """
    pending = [cell for cell in runs_of(cells) if not is_finished(cell, out)]
    require_data(pending, data)
    failures: list[Failure] = []
    if not pending:
        return failures
    for folder in (out, out / COMMANDS, out / LOGS):
        probe_writable(folder)
    version = commit()
    executor = executor or by_processes
    console = console or Output()
    with _progress(console) as bar:
        task_id = bar.add_task("runs", total=len(pending))
        # A run that needs another's teacher comes after it.
        for wave in (
            [cell for cell in pending if cell.source is None],
            [cell for cell in pending if cell.source is not None],
        ):
            ready = [c for c in wave if c.source is None or is_finished(c.source, out)]
            failures += [
                Failure(cell.folder, 1, "the run whose teacher it takes did not finish")
                for cell in wave
                if cell not in ready
            ]
            tasks = [_task(cell, data, out, version) for cell in ready]
            for task, code in executor(tasks, jobs, entry) if tasks else ():
                if code != 0:
                    why = "its process died" if code is None else _last_line(task.log)
                    failures.append(Failure(task.name, code or 1, f"{why} (log: {task.log})"))
                bar.advance(task_id)
                if not console.is_terminal:
                    state = "finished" if code == 0 else "failed"
                    console.print(f"{state}: {task.name}", soft_wrap=True, markup=False)
                done()
    return failures


def _task(cell: Cell, data: Path | None, out: Path, version: str) -> Job:
    flags = arguments(cell, data, out)
    record = {"command": "deepteach " + shlex.join(flags), "commit": version}
    write_atomic(out / COMMANDS / f"{cell.folder}.json", json.dumps(record).encode())
    resumed = ["--resume"] if (out / cell.folder / "config.yaml").exists() else []
    threads = int(cell.settings.get("threads") or 1)
    log = (out / LOGS / f"{cell.folder}.log").absolute()
    return Job(cell.folder, (*flags, *resumed), log, threads)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    told = [line.strip() for line in lines if line.strip()]
    return told[-1] if told else "it said nothing"


def commit() -> str:
    """The commit of this package's repository, marked where files differ; else its version."""
    root = Path(__file__).resolve().parent
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty"]
    tracked = ["git", "-C", str(root), "ls-files", "--error-unmatch", Path(__file__).name]
    try:
        if subprocess.run(tracked, capture_output=True).returncode == 0:
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return __version__


def kept_rows(path: Path, cells: Sequence[Cell]) -> dict[str, dict[str, str]]:
    """The rows of an earlier file of results by the name of their run's folder.

    Raises:
        DataError: the file is there and is none of results.
        ConfigError: it has rows of other cells, which could not be made again from their runs.
    """
    rows = read_csv(path) if path.exists() else []
    kept = {Path(shlex.split(row["command"])[-1]).name: row for row in rows}
    lost = set(kept) - {cell.folder for cell in cells}
    if any(not (path.parent / name / "summary.json").is_file() for name in lost):
        raise ConfigError(
            f"{path} has rows of other cells (of more --seeds, of another --scale or version) "
            "whose runs are gone: use another --out, or move the file away"
        )
    return kept


def result_rows(
    cells: Sequence[Cell], out: Path, kept: Mapping[str, Mapping[str, str]]
) -> list[dict[str, str]]:
    """The rows of the finished cells, as they stand in the CSV file; `kept` where no run is."""
    rows = []
    for cell in cells:
        place = {name: str(getattr(cell, name)) for name in COLUMNS[:8]}
        if not is_finished(cell, out):
            if cell.folder in kept:
                rows.append({**kept[cell.folder], **place})
            continue
        try:
            summary = json.loads((out / cell.folder / "summary.json").read_text())
            record = json.loads((out / COMMANDS / f"{cell.folder}.json").read_text())
        except (OSError, ValueError) as error:
            raise DataError(
                f"the run {out / cell.folder} cannot be read ({error}): delete its folder and "
                "start again"
            ) from error
        values = {
            **place,
            **figures_of(summary),
            "seconds": _figure(summary["seconds"], 2),
            **record,
        }
        more = (*EMA_COLUMNS, *(RANKING_COLUMNS if cell.ranks else ()))
        named = (*COLUMNS, *(name for name in more if name in values))
        rows.append({name: str(values[name]) for name in named})
    return rows


def figures_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """What a run found, as it stands in its row: the same again, to the last digit."""
    errors = {
        f"test_error{whose}_{kind}": _error(summary[f"test_accuracy{whose}_{kind}"])
        for whose in ("", "_ema")
        for kind in KINDS
        if not whose or f"test_accuracy{whose}_{kind}" in summary
    }
    ranked = {name: _figure(summary.get(name), 6) for name in RANKING_COLUMNS}
    return {**errors, "noise_auroc": _figure(summary["noise_auroc"], 6), **ranked}


def _error(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{100 * (1 - accuracy):.4f}"


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def write_csv(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Replace the file at once, so that it is whole at every instant."""
    have = {name for row in rows for name in row}
    columns = [*COLUMNS, *(name for more in _MORE if have & {*more} for name in more)]
    text = csv_text([columns, *([row.get(name, "") for name in columns] for row in rows)])
    write_atomic(path, text.encode())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file of results. Raises DataError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV ({error})") from error
    written = [*COLUMNS, *(name for more in _MORE if {*more} <= {*columns} for name in more)]
    if columns != written or any(None in row.values() for row in rows):
        raise DataError(f"{path} is not a file of results: its columns must be {','.join(COLUMNS)}")
    return rows
