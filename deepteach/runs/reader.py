"""A finished run, read back from its folder: settings, summary, curves, weights, samples.

Nothing here trains or draws. Everything read is treated as untrusted: YAML through the
safe loader, tensors through safetensors, no pickle, and damage is one line with the remedy.
"""

from __future__ import annotations

import csv
import json
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
from deepteach.runs import safe_yaml

BASELINE_FOLDER = "baseline"  # the sub-folder of the uniform run on the same schedule
_COLUMNS = ("index", "given_label", "predicted_label", "weight", "loss", "true_label")
_NUMBERS = (  # fields of summary.json that are a number, or null where unknown
    "seed epochs steps seconds test_accuracy_last test_accuracy_best noise_auroc "
    "test_accuracy_selected valid_accuracy_best teacher_parameters"
).split()


@dataclass(frozen=True)
class Weights:
    """The final weight of every training sample, in the order of their index.

    All columns are `(n,)`. Labels are kept as text: a class is a number or a name.
    `true` is "" where the truth is unknown.
    """

    index: NDArray[np.int64]
    given: NDArray[np.str_]
    predicted: NDArray[np.str_]
    weight: NDArray[np.float64]
    loss: NDArray[np.float64]
    true: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Where the true label is known, `(n,)`."""
        return self.true != ""

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Where the given label is known to be wrong, `(n,)`."""
        return self.known & (self.true != self.given)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes among the given labels."""
        return class_order(self.given)

    def take(self, rows: NDArray[Any]) -> Weights:
        """These rows only, given as positions or as a mask."""
        columns = ("index", "given", "predicted", "weight", "loss", "true")
        return Weights(*(getattr(self, name)[rows] for name in columns))

    def at(self, index: NDArray[Any]) -> Weights:
        """The rows of these sample indices, in their order.

        Raises:
            DataError: an index that weights.csv does not list.
        """
        rows = np.searchsorted(self.index, index).clip(max=max(len(self) - 1, 0))
        if len(index) and (not len(self) or (self.index[rows] != index).any()):
            raise DataError(
                "samples.safetensors names samples that weights.csv does not list: the two "
                "are of different runs; train again into an empty folder"
            )
        return self.take(rows)


@dataclass(frozen=True)
class Run:
    """One finished run. `beside` are the runs trained beside it on the same schedule."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    weights: Weights
    environment: dict[str, Any] = field(default_factory=dict)
    beside: tuple[Run, ...] = ()
    notes: tuple[str, ...] = ()  # what was tolerated while reading

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
            raise DataError(_damaged(path, error)) from error

    def column(self, name: str) -> NDArray[np.float64]:
        """One field of metrics.jsonl over the epochs, NaN where it is null: `(epochs,)`.

        Raises:
            DataError: a value is not a number.
        """
        values = (line.get(name) for line in self.metrics)
        try:
            return np.array([np.nan if v is None else float(v) for v in values], dtype=float)
        except (TypeError, ValueError) as error:
            raise DataError(_damaged(self.path / "metrics.jsonl", f"{name}: {error}")) from error


def open_run(path: str | Path) -> Run:
    """Read the run in a folder, and the runs trained beside it.

    A last line of metrics.jsonl that was cut off is left out, with a note in `notes`.

    Raises:
        DataError: the folder is not a run's, the run is unfinished, or a file is damaged.
    """
    run = _open(Path(path))
    beside, notes = [], list(run.notes)
    for folder in sorted(p for p in run.path.iterdir() if (p / "config.yaml").is_file()):
        if (folder / "summary.json").is_file():
            beside.append(_open(folder))
        else:
            notes.append(f"{folder.name} is unfinished and left out")
    beside.sort(key=lambda other: other.path.name != BASELINE_FOLDER)
    return replace(run, beside=tuple(beside), notes=tuple(notes))


def class_order(labels: NDArray[Any]) -> tuple[str, ...]:
    """The different labels in order: by value where all are whole numbers, else by name."""
    found = [str(label) for label in np.unique(labels).tolist()]
    numeric = all(label.removeprefix("-").isdecimal() for label in found)
    return tuple(sorted(found, key=int) if numeric else sorted(found))


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
            f"the run in {path} is unfinished (no summary.json): finish it with "
            f"`deepteach train --config {path / 'config.yaml'} --out {path} --resume`"
        )
    config = _mapping(path / "config.yaml", safe_yaml.parse)
    summary = _mapping(path / "summary.json", json.loads)
    if not isinstance(summary.get("method"), str):
        raise DataError(_damaged(path / "summary.json", "`method` is not a name"))
    for name in _NUMBERS:
        value = summary.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise DataError(_damaged(path / "summary.json", f"`{name}` is not a number"))
    environment = path / "environment.json"
    metrics, notes = _metrics(path / "metrics.jsonl")
    return Run(
        path=path,
        config=config,
        summary=summary,
        metrics=metrics,
        weights=_weights(path / "weights.csv"),
        environment=_mapping(environment, json.loads) if environment.is_file() else {},
        notes=notes,
    )


def _damaged(path: Path, why: object) -> str:
    reason = " ".join(str(why).split())[:120]
    return (
        f"{path} cannot be read ({reason}): it is damaged; go on from a checkpoint with "
        "`deepteach train --resume`, or train again into an empty folder"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(_damaged(path, error)) from error


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        found = parse(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(_damaged(path, error)) from error
    if not isinstance(found, dict):
        raise DataError(_damaged(path, f"expected named fields, found {type(found).__name__}"))
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
                raise DataError(_damaged(path, f"line {number}: {error}")) from error
            note = "the last line of metrics.jsonl was cut off and is left out"
            return [by_epoch[epoch] for epoch in sorted(by_epoch)], (note,)
    return [by_epoch[epoch] for epoch in sorted(by_epoch)], ()


def _weights(path: Path) -> Weights:
    if not path.is_file():
        raise DataError(_damaged(path, "it is missing"))
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            missing = set(_COLUMNS) - {"true_label"} - set(reader.fieldnames or ())
            if missing:
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            rows = [[row.get(name) or "" for name in _COLUMNS] for row in reader]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(_COLUMNS)
        index = np.array([int(text) for text in columns[0]], dtype=np.int64)
        weight = np.array([float(text) for text in columns[3]])
        loss = np.array([float(text or "nan") for text in columns[4]])
        if len(np.unique(index)) != len(index):
            raise ValueError("an index comes twice")
        if not np.isfinite(weight).all():
            raise ValueError("a weight is not finite")
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, OverflowError) as error:
        raise DataError(_damaged(path, error)) from error
    given, predicted, true = (np.array(columns[i], dtype=np.str_) for i in (1, 2, 5))
    order = np.argsort(index, kind="stable")
    return Weights(index, given, predicted, weight, loss, true).take(order)
