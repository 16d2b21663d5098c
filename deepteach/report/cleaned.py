"""The data set of a run without its label issues, written back in the format it came in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepteach.data.decisions import decisions_of
from deepteach.data.huggingface_datasets import without_rows
from deepteach.data.tasks.registry import AUTO
from deepteach.data.written_back import Change, written_back
from deepteach.errors import ConfigError
from deepteach.runs.reader import DECISIONS_FILE, Run
from deepteach.runs.sample_table import SampleTable
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
    decided = _decided(run.path)
    change = _change(run, decided, run.config.get("group"))
    write_atomic(out, written_back(str(spec), change, out))
    by_hand = sum(label is None for label in decided.values())
    issues = len(run.weights.index) - len(run.clean_indices())
    told = f"{out}: the data of {spec} without {issues} label issues"
    if decided:
        told += f", {by_hand} rows dropped by hand, and {len(change.labels)} rows checked"
    return told


def cleaned_dataset(
    run: SampleTable, dataset: Any, decisions: Mapping[int, Any] | str | Path | None = None
) -> Any:
    """The data set of Hugging Face that a run was trained on, cleaned as `write_cleaned` does.

    Args:
        run: the result of `dt.train`, or a run that was opened again.
        dataset: the Dataset that was given, or the DatasetDict, of which the training part
            changes. Nothing is written; `save_to_disk` and its relatives do.
        decisions: those of the run, where it has no folder that keeps them.

    Raises:
        ConfigError: the decisions of the run are not known, or several numbers are one label.
        DataError: it is another data set than that of the run.
    """
    config: Any = getattr(run, "config", {})
    path = getattr(run, "path", None)
    if decisions is not None:
        decided = decisions_of(decisions).labels
    elif path is not None:
        decided = _decided(path)
    elif getattr(config, "decisions", None) is None:
        decided = {}
    else:
        raise ConfigError("the run has no folder that keeps its decisions: give decisions=")
    return without_rows(dataset, _change(run, decided))


def _decided(folder: Path) -> Mapping[int, str | None]:
    """What a person had decided before the run began."""
    checked = folder / DECISIONS_FILE
    return decisions_of(checked).labels if checked.is_file() else {}


def _change(
    run: SampleTable,
    decided: Mapping[int, str | None],
    group: str | None = None,
) -> Change:
    weights = run.weights
    issues = np.setdiff1d(weights.index, run.clean_indices()).tolist()
    return Change(
        given=dict(zip(weights.index.tolist(), weights.given.tolist(), strict=True)),
        dropped=frozenset([*issues, *(row for row, label in decided.items() if label is None)]),
        labels={row: label for row, label in decided.items() if label is not None},
        task=str(run.summary.get("task", AUTO)),
        group=group,
    )
