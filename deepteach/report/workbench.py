"""The page of suspicious samples as a place to decide about them: what its script is told."""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass

import numpy as np

from deepteach.data.tasks.multilabel import MultiLabel
from deepteach.data.tasks.regression import Regression
from deepteach.errors import DataError
from deepteach.report.suspects import Suspect
from deepteach.runs.reader import DECISIONS_FILE, Run
from deepteach.runs.weights import AT_ONCE, class_order, damaged

TAKEN = "rwul"
"""Keys that do something else: right, wrong, undo, and to the list of labels."""
_FREE_TASKS = (MultiLabel.name, Regression.name)  # whose labels are written, not chosen


@dataclass(frozen=True)
class Choice:
    """A label that a sample may get, and the key that gives it; "" where none is left."""

    label: str
    key: str


@dataclass(frozen=True)
class Workbench:
    """The samples to be judged, and what a judgement may be.

    Args:
        run_key: under which the browser keeps what was marked: the same for the same samples.
        suspects: the least trusted first.
        choices: every label that the run knows.
        free: labels are written, not chosen: several at once, or quantities.
        sources: of the suspects.
        earlier: the decisions that the run began with, as the text of decisions.csv.
    """

    run_key: str
    suspects: tuple[Suspect, ...]
    choices: tuple[Choice, ...]
    free: bool
    sources: tuple[str, ...]
    earlier: str

    @property
    def given(self) -> tuple[str, ...]:
        """The given labels among the suspects."""
        return class_order(np.array([one.given for one in self.suspects]))

    @property
    def suggested(self) -> tuple[str, ...]:
        """The suggested labels among the suspects."""
        return class_order(np.array([one.suggested for one in self.suspects]))


def workbench_of(run: Run, suspects: tuple[Suspect, ...]) -> Workbench | None:
    """Of a run's suspects; None where there are none.

    Raises:
        DataError: the decisions that the run began with cannot be read.
    """
    if not suspects:
        return None
    weights = run.weights
    free = run.summary.get("task") in _FREE_TASKS
    known = np.concatenate([weights.given, weights.predicted])
    classes = () if free else class_order(known)
    return Workbench(
        run_key=_run_key(run),
        suspects=suspects,
        choices=tuple(map(Choice, classes, keys_of(classes))),
        free=free,
        sources=class_order(np.array([one.group for one in suspects if one.group])),
        earlier=_earlier(run),
    )


def keys_of(classes: tuple[str, ...]) -> list[str]:
    """A key for each class: its name where all names are keys, else 1 to 9, then letters."""
    own = [name.lower() for name in classes]
    usable = set(string.digits + string.ascii_lowercase) - set(TAKEN)
    if len(set(own)) == len(own) and set(own) <= usable:
        return own
    pool = [k for k in string.digits[1:] + string.ascii_lowercase if k in usable]
    return [*pool[: len(classes)], *[""] * (len(classes) - len(pool))]


def _earlier(run: Run) -> str:
    path = run.path / DECISIONS_FILE
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(damaged(path, error)) from error


def _run_key(run: Run) -> str:
    """Of the samples and their weights: a folder that is moved keeps its marks."""
    found = hashlib.sha256()
    for number, column in enumerate(run.weights.columns().values()):
        found.update(b"\n" if number else b"")
        for start in range(0, len(column), AT_ONCE):
            text = "\t".join(map(str, column[start : start + AT_ONCE].tolist()))
            found.update(f"\t{text}".encode() if start else text.encode())
    return found.hexdigest()[:16]
