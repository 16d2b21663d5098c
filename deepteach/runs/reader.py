"""A finished run, read back from its folder: settings, summary, curves, weights, samples.

Nothing here trains or draws. Everything read is treated as untrusted: YAML through the
safe loader, tensors through safetensors, no pickle, and damage is one line with the remedy.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from deepteach.errors import DataError
from deepteach.names import expanded
from deepteach.runs import safe_yaml
from deepteach.runs.sample_table import SampleTable, in_short
from deepteach.runs.weights import GroupWeight, Weights, damaged, read_groups, read_weights

UNIFORM = "uniform"  # the method of plain training, the baseline of the others
BASELINE_FOLDER = "baseline"  # the sub-folder of the uniform run on the same schedule
DECISIONS_FILE = "decisions.csv"  # those of before the run; a copy, for a file may change
_NUMBERS = (  # fields of summary.json that are a number, or null where unknown
    "seed epochs steps seconds classes noise_auroc student_parameters teacher_parameters "
    "noise_precision_100 noise_precision_1000 loss_auroc quality_auroc"
).split()
BOOKKEEPING = frozenset(  # settings of where and how a run runs; two that differ in them are alike
    "out baseline beside device threads workers logger graphs".split()
)
_APART = BOOKKEEPING | {"method", "adjoint", "teacher_lr"}  # may differ on one schedule
_FIGURES = ("test_", "valid_")  # what the names of others, figures of predictions, begin with


@dataclass(frozen=True)
class Run(SampleTable):
    """One finished run. `beside` are the runs trained beside it on the same schedule."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    weights: Weights
    environment: dict[str, Any] = field(default_factory=dict)
    beside: tuple[Run, ...] = ()
    groups: tuple[GroupWeight, ...] = ()  # empty where the samples have no sources
    notes: tuple[str, ...] = ()  # what was tolerated while reading

    def __repr__(self) -> str:
        return in_short("Run", self.summary, self.path)

    @property
    def method(self) -> str:
        return self.summary["method"]

    @property
    def baseline(self) -> Run | None:
        """The uniform run beside this one, or None."""
        return next((run for run in self.beside if run.path.name == BASELINE_FOLDER), None)

    @cached_property
    def samples(self) -> dict[str, NDArray[Any]]:
        """samples.safetensors, read when first asked for; empty where it was not written.

        Raises:
            DataError: the file is damaged.
        """
        path = self.path / "samples.safetensors"
        if not path.is_file():
            return {}
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise DataError(damaged(path, error)) from error

    def column(self, name: str) -> NDArray[np.float64]:
        """One field of metrics.jsonl over the epochs, NaN where it is null: `(epochs,)`.

        Raises:
            DataError: a value is not a number.
        """
        values = (line.get(name) for line in self.metrics)
        try:
            return np.array([np.nan if v is None else float(v) for v in values], dtype=float)
        except (TypeError, ValueError) as error:
            raise DataError(damaged(self.path / "metrics.jsonl", f"{name}: {error}")) from error


def folder_of(method: str) -> str:
    """The sub-folder of a run beside another one."""
    return BASELINE_FOLDER if method == UNIFORM else method


def open_run(path: str | Path) -> Run:
    """Read the run in a folder, and the runs trained beside it.

    A last line of metrics.jsonl that was cut off is left out, with a note in `notes`.

    Raises:
        DataError: the folder is not a run's, the run is unfinished, or a file is damaged.
    """
    run = _open(expanded(path))
    beside, notes = [], list(run.notes)
    for folder in sorted(p for p in run.path.iterdir() if (p / "config.yaml").is_file()):
        if not (folder / "summary.json").is_file():
            notes.append(f"{folder.name} is unfinished and left out")
            continue
        other = _open(folder)
        differing = [
            key
            for key in sorted((run.config.keys() & other.config.keys()) - _APART)
            if run.config[key] != other.config[key]
        ]
        if differing and folder.name != BASELINE_FOLDER:
            told = ", ".join(differing)
            notes.append(f"{folder.name} was not trained beside this run (other {told}): left out")
        else:
            beside.append(other)
    beside.sort(key=lambda other: other.path.name != BASELINE_FOLDER)
    return replace(run, beside=tuple(beside), notes=tuple(notes))


def _open(path: Path) -> Run:
    if not path.is_dir():
        what = "a file" if path.exists() else "not there"
        raise DataError(
            f"expected a run's folder, but {path} is {what}: name a training run's --out"
        )
    if not (path / "config.yaml").is_file():
        raise DataError(
            f"{path} is not a run's folder (no config.yaml): name a training run's --out"
        )
    if not (path / "summary.json").is_file():
        raise DataError(
            f"the run in {path} is unfinished (no summary.json): finish it with {_going_on(path)}"
        )
    config = _mapping(path / "config.yaml", safe_yaml.parse)
    summary = _mapping(path / "summary.json", json.loads)
    if not isinstance(summary.get("method"), str):
        raise DataError(damaged(path / "summary.json", "`method` is not a name"))
    for name in (*_NUMBERS, *(key for key in summary if key.startswith(_FIGURES))):
        value = summary.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise DataError(damaged(path / "summary.json", f"`{name}` is not a number"))
    environment = path / "environment.json"
    metrics, notes = _metrics(path / "metrics.jsonl")
    return Run(
        path=path,
        config=config,
        summary=summary,
        metrics=metrics,
        weights=read_weights(path / "weights.csv"),
        groups=read_groups(path / "groups.csv"),
        environment=_mapping(environment, json.loads) if environment.is_file() else {},
        notes=notes,
    )


def _going_on(path: Path) -> str:
    """The command, or the call, that began the run in a folder and goes on with it."""
    try:
        begun = safe_yaml.parse((path / "config.yaml").read_text(encoding="utf-8"))
        own = begun["data"] == "arrays" or begun["student"] == "custom"  # as `train` calls them
    except (OSError, ValueError, LookupError, TypeError):
        own = False  # the command will tell what is wrong with them
    if own:
        return f"the same dt.train(..., out={str(path)!r}, resume=True)"
    return f"`deepteach train --out {shlex.quote(str(path))} --resume`"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(damaged(path, error)) from error


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    text = _text(path)
    try:
        found = parse(text)
    except (ValueError, RecursionError) as error:
        raise DataError(damaged(path, error)) from error
    if not isinstance(found, dict):
        raise DataError(damaged(path, f"expected named fields, found {type(found).__name__}"))
    return found


def _metrics(path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The lines by epoch; of an epoch run twice (after a resume) the later line counts."""
    lines = [line for line in _text(path).splitlines() if line.strip()]
    by_epoch: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            by_epoch[int(entry["epoch"])] = entry
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number < len(lines):
                raise DataError(damaged(path, f"line {number}: {error}")) from error
            note = "the last line of metrics.jsonl was cut off and is left out"
            return [by_epoch[epoch] for epoch in sorted(by_epoch)], (note,)
    return [by_epoch[epoch] for epoch in sorted(by_epoch)], ()
