"""Tables beyond the paper: where nobody's rule knows what a sample is worth.

`sources`, `imbalance` and `labels` put the default teacher beside plain training, and beside what
can be had without a meta-gradient, in worlds (`deepteach/data/worlds.py`) whose truth is known,
under one full recipe. Rows and settings are data: a row more is a line more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deepteach.errors import ConfigError
from deepteach.reproduction.cell import Cell, Scenario, TableMethod, cell_of
from deepteach.reproduction.scale import Scale


@dataclass(frozen=True)
class Ground:
    """What a scale offers these tables; `{}` stands for the name of a file of labels."""

    images: tuple[str, str]
    """Name in the tables, value of `--data` without the folder."""
    table: tuple[str, str]
    student: str
    recipe: Mapping[str, Any]
    epochs: Callable[[int], int]
    """How many, from those at the cpu scale: a plain run takes about a minute of one core there."""
    mixed: str
    domains: str
    column: int
    """Of the table: what the biased sources sample by."""
    human: bool = True
    """Whether there are files of labels that people gave; else noise stands for them."""
    large: tuple[str, str] | None = None
    """The same images with more pixels, where there are some."""


@dataclass(frozen=True)
class Situation:
    """One world of a table: what its training samples are, and which rows it has."""

    name: str
    rows: Sequence[TableMethod]
    trusted: int
    epochs: int
    world: str = ""
    labels: str = "clean"
    noise: str = "none"
    rate: float = 0.0
    tabular: bool = False
    images: tuple[str, str] | None = None
    """Those of the ground unless given."""
    settings: Mapping[str, Any] = field(default_factory=dict)


# --- rows ---------------------------------------------------------------------------------

PLAIN = TableMethod("uniform", role="plain", headline=True)
TWICE = "twice the compute"
LONGER = TableMethod("uniform", TWICE)
PROBE = TableMethod("probe", "fixed weights")
MEANS = TableMethod("source-means", "fixed weights", headline=True)
TUNED_AT_LAST = TableMethod("fine-tune", "on the trusted set at last", headline=True)
RIDING = TableMethod("riding", "trusted set along, fixed weight 1", headline=True)
MERGED = TableMethod("merged", "trusted set merged in")
ADJUSTED = TableMethod("logit-adjustment")
ADJUSTED_TUNED = TableMethod(
    "logit-adjustment+fine_tune=0.34", "on the trusted set at last", headline=True
)
ADJUSTED_RIDING = TableMethod(
    "logit-adjustment+riding=3", "trusted set along, fixed weight 3", headline=True
)
BALANCED = TableMethod("class-balanced")
JTT = TableMethod("jtt", headline=True)
"""No headline until it turned out to be the strongest untaught rule on biased sources."""
GCE, ELR, CLEANLAB = TableMethod("gce"), TableMethod("elr"), TableMethod("cleanlab")
MENTORNET = TableMethod("mentornet")
MWN, PAPER = TableMethod("mwn", role="taught"), TableMethod("paper", role="taught")
DEFAULT = TableMethod("deep", role="deep", headline=True)
UNTAUGHT = TableMethod("deep+control=untaught", "never taught", headline=True)
"""Its own untaught parts: what it knows without a meta-gradient."""
FORMER = TableMethod("deep+features=probe", "probe alone", role="taught")
DEFAULT_LONGER = TableMethod("deep", TWICE, role="taught")
"""Beside plain training that is as long."""
ABLATIONS = (
    *(TableMethod(f"deep+without={part}", f"without {part}", role="ablation")
      for part in ("evidence", "shifts", "riding")),
    TableMethod("deep+history=true", "with history", role="ablation"),
    TableMethod("deep+fine_tune=0.34", "with a last phase on the trusted set", role="ablation"),
)  # fmt: skip
"""The default with each ingredient left out once, and two that it does not have put in."""
NO_SOURCES = TableMethod("deep+without=sources", "without sources", role="ablation")
"""The same, where sources are known."""

HEADLINE = (PLAIN, DEFAULT, UNTAUGHT, TUNED_AT_LAST, RIDING)
"""In all settings, and alone where a run takes four times as long."""
COMMON = (
    *HEADLINE,
    *(MERGED, PROBE, LONGER, DEFAULT_LONGER, MWN, PAPER, FORMER),
)
SOURCES = (*COMMON, MEANS, JTT, GCE)
IMBALANCE = (*COMMON, ADJUSTED, ADJUSTED_TUNED, ADJUSTED_RIDING, BALANCED)
LABELS = (*COMMON, GCE, ELR, CLEANLAB)
TABLE_6 = (*COMMON, MENTORNET)
"""The paper's flips, with the methods of its Table 6, under this recipe."""
FEW = (*HEADLINE, MERGED, PROBE)
"""Of a curve over the size of the trusted set."""


# --- settings -----------------------------------------------------------------------------


def sources(ground: Ground) -> list[Situation]:
    """Samples from sources of unknown use: biased, of unequal quality, of other domains."""
    few = (*FEW, MEANS, JTT)
    mixed, domains = f"mixed+of={ground.mixed}", f"domains+of={ground.domains}"
    sampled = f"sampled+column={ground.column}"
    return [
        Situation(
            "biased sources, 300 trusted", (*SOURCES, NO_SOURCES, *ABLATIONS), 300, 15, "biased"
        ),
        Situation("sources of unequal labels, 1,000 trusted", SOURCES, 1000, 15, mixed),
        Situation("sources of other domains, 300 trusted", SOURCES, 300, 15, domains),
        Situation(
            "sources of biased sampling, 300 trusted", SOURCES, 300, 15, sampled, tabular=True
        ),
        Situation("biased sources, 100 trusted", few, 100, 15, "biased"),
        Situation("biased sources, 1,000 trusted", few, 1000, 15, "biased"),
        *_at_32(
            ground, Situation("biased sources, 300 trusted", (*HEADLINE, JTT), 300, 15, "biased")
        ),
    ]


def imbalance(ground: Ground) -> list[Situation]:
    """Long tails; the trusted set is balanced, as the test set is."""
    tail = "tail+factor=100"
    rows = (*IMBALANCE, *ABLATIONS)
    return [
        Situation("long tail of 100, 300 trusted", rows, 300, 45, tail),
        Situation("long tail of 100, flip 40 %, 300 trusted", rows, 300, 45, tail,
                noise="flip", rate=0.4),
        Situation("long tail of 10, 300 trusted", IMBALANCE, 300, 30, "tail+factor=10"),
    ]  # fmt: skip


def labels(ground: Ground) -> list[Situation]:
    """Wrong labels: people's, added, none; and how small the trusted set may be."""

    def human(name: str, rate: float, rows: Sequence[TableMethod], trusted: int) -> Situation:
        shown = f"human labels {name}, {trusted:,} trusted"
        if ground.human:
            return Situation(shown, rows, trusted, 15, labels=name)
        return Situation(shown, rows, trusted, 15, noise="flip", rate=rate)

    return [
        human("worse", 0.402, (*LABELS, *ABLATIONS), 1000),
        Situation("flip 20 %, 1,000 trusted", TABLE_6, 1000, 15, noise="flip", rate=0.2),
        Situation(
            "flip 40 %, 1,000 trusted", (*LABELS, MENTORNET), 1000, 15, noise="flip", rate=0.4
        ),
        Situation("uniform 60 %, 1,000 trusted", LABELS, 1000, 15, noise="uniform", rate=0.6),
        Situation("clean labels, 1,000 trusted", LABELS, 1000, 15),
        human("aggre", 0.09, LABELS, 1000),
        *_at_32(ground, human("worse", 0.402, HEADLINE, 1000)),
        *(human("worse", 0.402, FEW, trusted) for trusted in (10, 20, 50, 100, 300)),
    ]


def _at_32(ground: Ground, setting: Situation) -> list[Situation]:
    """The same on the large images, where there are some."""
    name = setting.name.replace(",", " at 32x32,", 1)
    return [replace(setting, name=name, images=ground.large)] if ground.large else []


BEYOND: dict[str, Callable[[Ground], list[Situation]]] = {
    "sources": sources, "imbalance": imbalance, "labels": labels,
}  # fmt: skip

_RECIPE: dict[str, Any] = {
    "augment": True, "batch_size": 128, "valid_batch": 256, "lr": 0.1, "momentum": 0.9,
    "weight_decay": 5e-4, "schedule": "cosine", "ema": 0.99, "threads": 1,
    "evaluate_every": 5,
}  # fmt: skip

GROUNDS: dict[str, Ground] = {
    "cpu": Ground(
        ("CIFAR-10 (JPEG) 10,000 16x16", "npz:mini16/{}.npz"),
        ("Adult", "npz:adult.npz"),
        "resnet8-s2",
        _RECIPE,
        lambda epochs: epochs,
        mixed="aggre,random1,worse,flip0.6",
        domains="plain,grey,inverted,rotated",
        column=2,  # years of education
        large=("CIFAR-10 (JPEG) 10,000 32x32", "npz:mini32/{}.npz"),
    ),
    "smoke": Ground(
        ("digits", "digits"),
        ("digits", "digits"),
        "mlp",
        {**_RECIPE, "lr": 0.05, "valid_batch": 32},
        lambda epochs: 1,
        mixed="clean,flip0.2,flip0.6",
        domains="plain,inverted,rotated",
        column=20,
        human=False,
    ),
}


# --- cells --------------------------------------------------------------------------------


def beyond(table: str) -> Callable[[Scale], list[Cell]]:
    """The recipe of one of these tables: a scale to its cells.

    The rows that the table is about (`headline`) come first in all settings, and have more
    seeds; the ablations come last.
    """

    def recipe(scale: Scale) -> list[Cell]:
        ground = GROUNDS.get(scale.name)
        if ground is None:
            offered = " or ".join(GROUNDS)
            raise ConfigError(
                f"table {table} is none of the paper's, so there is no scale {scale.name} of it: "
                f"use --scale {offered}"
            )
        return [
            cell
            for setting in BEYOND[table](ground)
            for seed in range(max(scale.seeds, scale.headline_seeds))
            for row in setting.rows
            if seed < (scale.headline_seeds if row.headline else scale.seeds)
            for cell in [_cell(scale, ground, table, setting, row, seed)]
        ]

    return recipe


def _cell(
    scale: Scale, ground: Ground, table: str, setting: Situation, row: TableMethod, seed: int
) -> Cell:
    name, spec = ground.table if setting.tabular else setting.images or ground.images
    epochs = ground.epochs(setting.epochs)
    settings = {"epochs": epochs, "valid_size": setting.trusted, **setting.settings}
    if setting.world:
        settings["world"] = setting.world
    if setting.tabular:
        settings["augment"] = False  # there are no images to crop
    place = Scenario(
        (name, spec.format(setting.labels)),
        "mlp" if setting.tabular else ground.student,
        ground.recipe,
        setting.noise,
        setting.rate,
        setting.name,
        settings,
    )
    if row.variant == TWICE:
        row = replace(row, settings={**row.settings, "epochs": 2 * epochs})
    later = 1 if seed >= scale.seeds else 0
    rank = later if row.headline else 3 if row.role == "ablation" else 2
    return replace(cell_of(scale, table, place, row, seed), rank=rank, ranks=True)
