"""Training samples in the order of distrust, as CSV or Parquet."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from deepteach.errors import ConfigError
from deepteach.runs.storage import csv_text, write_atomic
from deepteach.runs.weights import Weights


@dataclass(frozen=True)
class Ranking:
    """Columns of equal length, the least trusted sample first."""

    columns: dict[str, list]

    def csv(self) -> str:
        return csv_text(chain([[*self.columns]], zip(*self.columns.values(), strict=True)))

    def parquet(self) -> bytes:
        """Raises ConfigError where pyarrow is not installed."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ConfigError(
                "Parquet needs pyarrow: pip install 'deepteach[parquet]', or write .csv"
            ) from None
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(self.columns), sink)
        return sink.getvalue()


def ranked(weights: Weights, top: int | None = None) -> Ranking:
    """All samples, or the `top` least trusted; ties keep the order of the data."""
    order = weights.weight.argsort(kind="stable")[:top]
    rows = weights.take(order)
    columns = {name: column.tolist() for name, column in rows.columns().items()}
    return Ranking({"rank": list(range(1, len(rows) + 1)), **columns})


def write(ranking: Ranking, path: Path) -> None:
    """Write .csv or .parquet, never over an existing file."""
    if path.exists():
        raise ConfigError(f"{path} exists: choose another --out")
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path.name}: the ending must be .csv or .parquet")
    data = ranking.parquet() if path.suffix == ".parquet" else ranking.csv().encode()
    write_atomic(path, data)
