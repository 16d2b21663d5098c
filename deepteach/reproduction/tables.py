"""The paper's tables as runs: a recipe is a function of a scale and returns its cells.

A cell that a scale cannot have is left out with a reason (`not_reproduced`), never replaced
under the same name: data and student are columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deepteach.errors import ConfigError
from deepteach.names import known
from deepteach.reproduction.beyond import BEYOND, beyond
from deepteach.reproduction.carried import carried
from deepteach.reproduction.cell import Cell, Scenario, TableMethod, cell_of, cells_of
from deepteach.reproduction.published import (
    OURS,
    PUBLISHED_1,
    PUBLISHED_2,
    PUBLISHED_3,
    PUBLISHED_4,
    PUBLISHED_5,
    PUBLISHED_6,
    PUBLISHED_7,
    PUBLISHED_BASELINE,
    PUBLISHED_DEEPER,
    PUBLISHED_TRANSFER,
)
from deepteach.reproduction.scale import SCALES, Scale

BASELINE = TableMethod("uniform", published="Baseline")
PAPER = TableMethod("paper", published=OURS, taught=True)
DEEP = TableMethod("deep+features=probe", "probe alone", taught=True)
"""The default as it was when these tables were measured; its successor is in those of `beyond`."""
NOISE_ROWS = (
    BASELINE, TableMethod("mentornet", published="MentorNet"),
    TableMethod("mwn", published="Meta-Weight-Net"), PAPER, DEEP,
)  # fmt: skip
FINE_TUNE = TableMethod("fine-tune", "on the trusted set at last")
TRUSTED_ROWS = (
    TableMethod("merged", "trusted set merged in"), FINE_TUNE,
    TableMethod("trusted-only", "trusted set alone"),
)  # fmt: skip
"""The same trusted samples used without a teacher."""


def _ablation(scale: Scale) -> Scenario:
    """CIFAR-10, clean labels, ResNet-32 or what stands for it."""
    return Scenario(scale.data["CIFAR-10"], scale.students["resnet32"], scale.clean)


def _each(
    scale: Scale,
    table: str,
    variants: Sequence[tuple[TableMethod, float]],
    scenario: Scenario | None = None,
) -> list[Cell]:
    """The baseline, and variants of the paper's teacher with a number each."""
    rows = [(BASELINE, PUBLISHED_BASELINE), *variants]
    scenario = scenario or _ablation(scale)
    return [
        cell_of(scale, table, scenario, row, seed, number)
        for seed in range(scale.seeds)
        for row, number in rows
    ]


def _taught(method: str, variant: str, **settings: Any) -> TableMethod:
    return TableMethod(method, variant, taught=True, settings=settings)


# --- the tables ---------------------------------------------------------------------------


def table1(scale: Scale) -> list[Cell]:
    """Clean labels: every method on every student. Focal's gamma as the paper searched it."""
    rows = (
        BASELINE, TableMethod("l2t-data", published="L2T-data"),
        TableMethod("l2t-loss", published="L2T-loss"),
        *(TableMethod(f"focal+gamma={g}", f"gamma={g}", "Focal") for g in (0.5, 1, 2)),
        TableMethod("spl", published="SPL"), PAPER,
    )  # fmt: skip
    found: list[Cell] = []
    for (data, student), numbers in PUBLISHED_1.items():
        if data not in scale.data or student not in scale.students:
            continue
        place = (scale.data[data][0], scale.students[student])
        if place in {(cell.data, cell.student) for cell in found}:
            continue  # one student stands for several: shown once, as that of ResNet-32
        have = [row for row in rows if row.published in numbers]  # the paper's N/A are left out
        scenario = Scenario(scale.data[data], scale.students[student], scale.clean)
        found += cells_of(scale, "table1", scenario, have, numbers)
    return found


def table2(scale: Scale) -> list[Cell]:
    """What the teacher reads."""
    rows = [(_features(names), number) for names, number in PUBLISHED_2.items()]
    return _each(scale, "table2", rows)


def _features(names: str) -> TableMethod:
    default = names == "I0.M0"
    return _taught("paper" if default else f"paper+features={names}", names.replace(".", "+"))


def table3(scale: Scale) -> list[Cell]:
    """Which level's internal state it reads."""
    rows = [(_taught("paper", "I0+M0"), PUBLISHED_3[0])]
    for level in (1, 2, 3):
        settings = {"internal": scale.levels[level], "pool": "avg"}
        rows.append((_taught("paper", f"I{level}+M0", **settings), PUBLISHED_3[level]))
    scenario = _ablation(scale)
    if scale.students["resnet32"] == "mlp":  # it has no feature maps
        scenario = replace(scenario, student="resnet8")
    return _each(scale, "table3", rows, scenario)


def table4(scale: Scale) -> list[Cell]:
    """Hidden layers of the teacher."""
    names = ("paper", "paper+hidden_layers=1", "paper+hidden_layers=2")
    rows = [(_taught(name, f"MLP-{i}"), PUBLISHED_4[i]) for i, name in enumerate(names)]
    return _each(scale, "table4", rows)


def table5(scale: Scale) -> list[Cell]:
    """Uniform noise."""
    return _noise(scale, "table5", "uniform", scale.uniform, "wrn-28-10", PUBLISHED_5, NOISE_ROWS)


def table6(scale: Scale) -> list[Cell]:
    """Flip noise, with the trusted set used without a teacher beside it."""
    rows = (*NOISE_ROWS, *TRUSTED_ROWS)
    return _noise(scale, "table6", "flip", scale.flip, "resnet32", PUBLISHED_6, rows)


def _noise(
    scale: Scale,
    table: str,
    kind: str,
    schedule: Mapping[str, Any],
    student: str,
    published: Mapping[tuple[str, float], Mapping[str, float]],
    rows: Sequence[TableMethod],
) -> list[Cell]:
    found: list[Cell] = []
    for (data, rate), numbers in published.items():
        if data in scale.data:
            place = Scenario(scale.data[data], scale.students[student], schedule, kind, rate)
            found += cells_of(scale, table, place, rows, numbers)
    return found


def table7(scale: Scale) -> list[Cell]:
    """Interval K and window B, as they are at every scale."""
    rows = [
        (_taught("paper", f"K={k} B={b}", interval=k, window=b), number)
        for (k, b), number in PUBLISHED_7.items()
    ]
    return _each(scale, "table7", rows)


def figure2_teachers(scale: Scale) -> list[Cell]:
    """T0, a teacher of surface information alone, and T1, one of internal states."""
    rows = [(replace(_features(names), variant=f"{name} ({names})"), PUBLISHED_2[names])
            for name, names in (("T0", "M1"), ("T1", "I0"))]  # fmt: skip
    return _each(scale, "figure2", rows)


def deeper(scale: Scale) -> list[Cell]:
    """Deeper interactions: the student's gradient passes through the weights, too."""
    through = _taught("paper", "through weights", through_weights=True)
    rows = [(_features("I0.M0"), PUBLISHED_2["I0.M0"]), (through, PUBLISHED_DEEPER)]
    return _each(scale, "deeper", rows)


def transfer(scale: Scale) -> list[Cell]:
    """Appendix B: a taught teacher, frozen, for a student that starts from scratch.

    Onto the student it was taught on, onto another student, onto other data. The label
    embedding fits no other number of classes, so a teacher of I0 alone goes to CIFAR-100.
    The default teacher reads no coordinate of the student's; it is moved under label noise.
    """
    own, other = scale.teacher_students
    data, elsewhere = scale.data["CIFAR-10"], scale.data["other"]
    same_classes = elsewhere[0] != "CIFAR-100"
    clean = Scenario(data, own, scale.clean)
    noisy = Scenario(data, own, scale.flip, "flip", 0.4)

    def moved_to(place: Scenario) -> Scenario:
        schedule = {**place.schedule, **scale.other_schedule}
        return replace(place, student=other, schedule=schedule)

    state_only = _features("I0")
    moved = _taught("paper", "I0+M0") if same_classes else state_only
    plans = (
        (clean, clean, (PAPER,), ""),
        (clean, moved_to(clean), (PAPER,), "other student"),
        (clean, replace(clean, data=elsewhere), (moved,), "other data"),
        (noisy, moved_to(noisy), (PAPER, DEEP), ""),
    )
    found: list[Cell] = []
    for seed in range(scale.seeds):
        for origin, target, rows, name in plans:
            if name == "other data" and elsewhere == data:
                continue  # there are no other data at this scale
            found.append(cell_of(scale, "transfer", target, BASELINE, seed))
            for row in rows:
                reads = "I0, " if row is state_only else ""
                there = f"{origin.data[0]} {origin.student}"
                number = None if row is state_only else PUBLISHED_TRANSFER.get(name)
                taught = replace(row, variant=f"{reads}taught")
                frozen = replace(
                    row, variant=f"{reads}frozen, taught on {there}", settings={"window": 1}
                )
                source = cell_of(scale, "transfer", origin, row, seed)
                found.append(cell_of(scale, "transfer", target, taught, seed))
                found.append(cell_of(scale, "transfer", target, frozen, seed, number, source))
    return found


def human(scale: Scale) -> list[Cell]:
    """Labels that people gave (CIFAR-10N); not in the paper."""
    found: list[Cell] = []
    student = scale.students["resnet32"]
    for name, spec, rate in scale.labels:
        data = (scale.data["CIFAR-10"][0], spec)
        place = Scenario(data, student, scale.flip, scale.human_noise, rate, name)
        found += cells_of(scale, "human", place, NOISE_ROWS)
    return found


def controls(scale: Scale) -> list[Cell]:
    """The headline row, the probe taught under 40 % flips, with one part of its signal taken away.

    Beside it twice as many updates; the trusted set trained on at last, with a teacher until
    then and without; plain training with as much compute; and another draw of the noise with
    the same initial weights and order of samples.
    """
    student = scale.students["resnet32"]
    place = Scenario(scale.data["CIFAR-10"], student, scale.flip, "flip", 0.4)
    found: list[Cell] = []
    for seed in range(scale.seeds):
        whole = cell_of(scale, "controls", place, DEEP, seed)
        found += [cell_of(scale, "controls", place, BASELINE, seed), whole]
        for name in ("shuffled", "random-features", "random-gradient"):
            row = TableMethod(f"{DEEP.method}+control={name}", name, taught=True)
            found.append(cell_of(scale, "controls", place, row, seed))
        frozen = TableMethod(f"{DEEP.method}+control=frozen", "frozen at their mean")
        found.append(cell_of(scale, "controls", place, frozen, seed, source=whole))
        found.append(
            cell_of(scale, "controls", place, TableMethod("probe", "probe, not taught"), seed)
        )
        often = {"interval": max(scale.window, scale.interval // 2)}
        for row in (
            replace(DEEP, variant="twice the updates", settings=often),
            FINE_TUNE,
            TableMethod(f"{DEEP.method}+fine_tune=0.34", FINE_TUNE.variant, taught=True),
        ):
            found.append(cell_of(scale, "controls", place, row, seed))
        # Teaching at K = 7 nearly doubles the time of a run.
        longer = {"epochs": 2 * scale.flip["epochs"]}
        if "milestones" in scale.flip:
            longer["milestones"] = tuple(2 * epoch for epoch in scale.flip["milestones"])
        twice = TableMethod("uniform", "twice the epochs", settings=longer)
        found.append(cell_of(scale, "controls", place, twice, seed))
        drawn = {"noise": {"kind": "flip", "rate": 0.4, "seed": 100 + seed}}
        elsewhere = replace(place, noise_shown="flip, another draw,")
        for row in (BASELINE, DEEP):
            again = replace(row, settings=drawn)
            found.append(cell_of(scale, "controls", elsewhere, again, seed))
    return found


@dataclass(frozen=True)
class Table:
    """A table as runs, and what of the paper it stands for."""

    cells: Callable[[Scale], list[Cell]]
    paper: Sequence[str] = ("CIFAR-10 with resnet32",)
    """The paper's cells, of which a scale may lack some; none where the table is not its own."""
    left_out: str = ""
    """What is left out even where a scale has CIFAR-100, and why."""
    page: bool = False
    """It has a page, which is drawn from the runs themselves: rows are not enough."""


TABLES: dict[str, Table] = {
    "table1": Table(table1, [f"{data} with {student}" for data, student in PUBLISHED_1]),
    "table2": Table(table2),
    "table3": Table(table3),
    "table4": Table(table4),
    "table5": Table(table5, [f"{data} with wrn-28-10, {100 * p:g} %" for data, p in PUBLISHED_5]),
    "table6": Table(table6, [f"{data} with resnet32, {100 * p:g} %" for data, p in PUBLISHED_6]),
    "table7": Table(table7),
    "figure2": Table(figure2_teachers, page=True),
    "deeper": Table(deeper),
    "transfer": Table(
        transfer,
        ("CIFAR-10 to CIFAR-100 with resnet32", "resnet32 to resnet110 on CIFAR-10"),
        "I0+M0 to CIFAR-100: an embedding of 10 labels fits no 100, and the paper does not "
        "say what it did; a teacher of I0 alone is moved instead",
    ),
    "human": Table(human, ()),
    "controls": Table(controls, ()),
    **{name: Table(beyond(name), ()) for name in BEYOND},
    "carried": Table(carried, ()),
}


def cells(table: str, scale: str, seeds: int | None = None) -> list[Cell]:
    """The cells of a table. Raises ConfigError: an unknown table or scale, with the nearest."""
    wanted = known("table", table, TABLES)
    chosen = known("scale", scale, SCALES)
    if seeds is not None and seeds < 1:
        raise ConfigError(f"--seeds must be 1 or more, got {seeds}")
    if seeds is not None:
        chosen = replace(chosen, seeds=seeds, headline_seeds=seeds)
    return wanted.cells(chosen)


def not_reproduced(table: str, scale: str) -> list[str]:
    """What this scale leaves out of a table, and why."""
    place, wanted, reasons = SCALES[scale], TABLES[table], []
    for cell in wanted.paper:
        why = []
        if "CIFAR-100" in cell and "CIFAR-100" not in place.data:
            why.append("its images are not among the data of this scale")
        big = [name for name in ("resnet32", "resnet110", "wrn-28-10") if name in cell]
        here = [name for name in big if place.students.get(name) != name]
        if here:
            why.append(f"{here[0]} at its epochs needs a GPU")
        if why:
            reasons.append(f"{cell}: {'; '.join(why)}")
    if wanted.left_out and "CIFAR-100" in place.data:
        reasons.append(wanted.left_out)
    return reasons
