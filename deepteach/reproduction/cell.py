"""A cell of a table: its columns, and the settings of the run behind it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deepteach.reproduction.scale import Scale
from deepteach.training.config import make


@dataclass(frozen=True)
class Cell:
    """One run of a table: its columns, and the settings of `deepteach train`.

    `settings["data"]` names a file within the data folder. `source` is the run whose teacher
    or weights this one takes, `published` the paper's error for the same cell at its scale.
    """

    table: str
    data: str
    noise: str
    rate: float
    student: str
    method: str
    variant: str
    seed: int
    settings: Mapping[str, Any] = field(hash=False)
    source: Cell | None = None
    published: float | None = None
    rank: int = 0
    """Runs of a lower rank come first."""
    ranks: bool = False
    """Whether its row says how well wrong labels are found."""

    @property
    def folder(self) -> str:
        """Readable, and told apart by its settings: equal cells of two tables are one run.

        By those that the recipe gives, so that a new key of the configuration renames nothing.
        """
        values = make(dict(self.settings)).model_dump(mode="json", exclude_unset=True)
        origin = None if self.source is None else self.source.folder
        digest = hashlib.sha256(json.dumps([values, origin], sort_keys=True).encode()).hexdigest()
        data = str(values["data"]).partition(":")[2] or values["data"]
        kind, rate = values["noise"]["kind"], values["noise"]["rate"]
        noise = "" if kind == "none" else f"-{kind}{100 * rate:g}"
        world = f"-{values['world']}" if values.get("world") else ""
        name = f"{data}{world}{noise}-{values['student']}-{values['method']}-s{values['seed']}"
        return f"{re.sub('[^A-Za-z0-9.+=-]+', '_', name.replace('.npz', ''))}-{digest[:8]}"


Role = Literal["plain", "untaught", "taught", "deep", "ablation"]
"""What a row is compared as in the tables beyond the paper."""


@dataclass(frozen=True)
class TableMethod:
    """A method of a table. Only one that is `taught` takes the scale's K and B."""

    method: str
    variant: str = ""
    published: str = ""
    taught: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    role: Role = "untaught"
    headline: bool = False
    """Run first, and for more seeds than the other rows of its table."""


@dataclass(frozen=True)
class Scenario:
    """A column of a table: data, noise, student, schedule."""

    data: tuple[str, str]
    student: str
    schedule: Mapping[str, Any]
    noise: str = "none"
    rate: float = 0.0
    noise_shown: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def cells_of(
    scale: Scale,
    table: str,
    scenario: Scenario,
    rows: Sequence[TableMethod],
    published: Mapping[str, float] | None = None,
) -> list[Cell]:
    """The cells of one scenario, all rows of a seed together."""
    return [
        cell_of(scale, table, scenario, row, seed, (published or {}).get(row.published))
        for seed in range(scale.seeds)
        for row in rows
    ]


def cell_of(
    scale: Scale,
    table: str,
    scenario: Scenario,
    row: TableMethod,
    seed: int,
    published: float | None = None,
    source: Cell | None = None,
) -> Cell:
    """One cell of a table."""
    label, spec = scenario.data
    schedule = dict(scenario.schedule)
    if spec.startswith("npz:") or spec == "digits":
        schedule.pop("valid_size", None)  # these come with a trusted set
    taught = {"interval": scale.interval, "window": scale.window} if row.taught else {}
    settings = {
        "data": spec,
        "noise": {
            "kind": scenario.noise,
            "rate": scenario.rate if scenario.noise != "none" else 0.0,
        },
        "student": scenario.student,
        "method": row.method,
        "baseline": False,
        **schedule,
        **scenario.settings,
        **taught,
        **row.settings,
        "seed": seed,
    }
    noise = scenario.noise_shown or scenario.noise
    name = row.method.partition("+")[0]
    return Cell(
        table, label, noise, scenario.rate, scenario.student, name, row.variant, seed, settings,
        source, published,
    )  # fmt: skip
