"""The data set of a run without its label issues, written back in the format it came in."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deepteach.data.decisions import decisions_of
from deepteach.data.written_back import Change, written_back
from deepteach.errors import ConfigError
from deepteach.runs.reader import Run
from deepteach.runs.storage import write_atomic


def write_cleaned(run: Run, out: Path) -> str:
    """Write the data of a run to `out`, never over an existing file; what to tell of it.

    Training rows that are label issues are left out (`clean_indices`), as are those that a
    person has dropped; rows that one has checked get their label. All else stays.

    Raises:
        ConfigError: the file is there already, or the data are none that can be written back.
        DataError: they have changed since the run, or cannot be read.
        StorageError: the disk failed.
    """
    spec = run.config.get("data")
    if out.exists():
        raise ConfigError(f"{out} exists: choose another --clean")
    noise = run.config.get("noise") or {}
    changes = {"noise.kind": noise.get("kind", "none") != "none", "world": run.config.get("world")}
    if changed := next((name for name, done in changes.items() if done), None):
        raise ConfigError(
            f"the run changed its data on purpose ({changed}), so its judgement is not of the "
            "labels in the file: clean the data of a run without that"
        )
    checked = run.path / "decisions.csv"
    decided = decisions_of(checked).labels if checked.is_file() else {}
    weights = run.weights
    issues = np.setdiff1d(weights.index, run.clean_indices()).tolist()
    dropped = [row for row, label in decided.items() if label is None]
    change = Change(
        given=dict(zip(weights.index.tolist(), weights.given.tolist(), strict=True)),
        dropped=frozenset([*issues, *dropped]),
        labels={row: label for row, label in decided.items() if label is not None},
        task=str(run.config.get("task", "auto")),
        group=run.config.get("group"),
    )
    write_atomic(out, written_back(str(spec), change, out))
    told = f"{out}: the data of {spec} without {len(issues)} label issues"
    if decided:
        told += f", {len(dropped)} rows dropped by hand, and {len(change.labels)} rows checked"
    return told
