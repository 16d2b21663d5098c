"""What a run says of its training samples, as data frames, indices and a sampler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import WeightedRandomSampler

from deepteach.errors import ConfigError, DataError
from deepteach.runs.weights import Weights

if TYPE_CHECKING:
    import pandas

_LABELS = ("given_label", "predicted_label", "suggested_label", "true_label")


def in_short(kind: str, summary: Mapping[str, Any], path: Path | None) -> str:
    """A line on a run for a prompt: its method, length, figures at the last epoch and folder."""
    known = {name: summary.get(name) for name in ("method", "epochs")}
    known |= {k: round(v, 4) for k, v in summary.items() if k.endswith("_last") and v is not None}
    known |= {} if path is None else {"path": str(path)}
    return f"{kind}({', '.join(f'{name}={value!r}' for name, value in known.items())})"


class SampleTable:
    """A finished run, of which the training samples are known by the user's own rows."""

    weights: Weights
    """In the order of their index."""
    summary: dict[str, Any]
    """The fields of summary.json."""

    def to_frame(self) -> pandas.DataFrame:
        """The columns of weights.csv, a row per training sample; its index is the user's own row.

        Labels are whole numbers, or floats, where all of them are; true_label is left out where
        it is unknown.

        Raises:
            ConfigError: pandas is not installed.
        """
        frames, weights = _pandas(), self.weights
        columns: dict[str, Any] = weights.columns()
        shown = {name: columns[name] for name in _LABELS if name in columns}
        if not weights.known.any():
            del shown["true_label"], columns["true_label"]
        typed = _typed(shown)
        return frames.DataFrame({**columns, **typed}, index=weights.index.copy())

    def issues(self) -> pandas.DataFrame:
        """Which given labels are issues, with the columns that users of cleanlab know.

        A row per training sample, in the order of the data; its index is the user's own row.
        Columns: `is_label_issue`, where the run suggests another label (`Weights.issue`);
        `label_quality` in [0, 1), by the teacher's weight alone: 0.5 is plain training's;
        `given_label` and `predicted_label`. Sorted by `label_quality` it is the order of
        `deepteach weights`.

        Raises:
            ConfigError: pandas is not installed.
        """
        frame, weights = self.to_frame(), self.weights
        columns = {
            "is_label_issue": weights.issue,
            "label_quality": weights.quality,
            "given_label": frame["given_label"],
            "predicted_label": frame["predicted_label"],
        }
        return _pandas().DataFrame(columns, index=frame.index)

    def clean_indices(self) -> NDArray[np.int64]:
        """`(k,)` the user's own rows of the training samples that are no label issues."""
        return self.weights.index[~self.weights.issue]

    def sampler(self, generator: torch.Generator | None = None) -> WeightedRandomSampler:
        """Draws training samples in proportion to their weights, as many as there are.

        What is drawn are the user's own rows, to be looked up in the data set that the training
        samples are rows of. Other rows of it, as those split off as trusted, are never drawn.

        Raises:
            DataError: all weights are 0.
        """
        index, weight = self.weights.index, self.weights.weight
        if not (weight > 0).any():
            raise DataError("all weights are 0: there is nothing to draw")
        spread = np.zeros(int(index.max()) + 1)
        spread[index] = weight
        return WeightedRandomSampler(spread.tolist(), len(index), generator=generator)


def _typed(shown: dict[str, NDArray[np.str_]]) -> dict[str, NDArray[Any]]:
    """Labels as whole numbers or floats, where that loses nothing; else text."""
    texts = {text for column in shown.values() for text in np.unique(column).tolist()}
    for kind, spelt in ((int, "d"), (float, ".10g")):
        try:
            values = {text: kind(text) for text in texts}
        except ValueError:
            continue
        kept = all(format(value, spelt) == text for text, value in values.items())  # not of 01
        if kept and np.isfinite([*values.values()]).all():
            return {name: column.astype(kind) for name, column in shown.items()}
    return {name: column.astype(object) for name, column in shown.items()}


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ConfigError(
            "a data frame needs pandas: pip install 'deepteach[pandas]', or read weights.csv"
        ) from error
    return pandas
