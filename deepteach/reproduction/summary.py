"""Results of a table's cells beside the paper's numbers: spread, gain, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from deepteach.errors import DataError
from deepteach.report.html import write_report
from deepteach.report.stats import LITTLE_POWER, Gain, paired_gains
from deepteach.report.table import UNKNOWN, TextTable, mean_std, number
from deepteach.reproduction.beyond import BEYOND
from deepteach.reproduction.cell import Cell
from deepteach.reproduction.claims import Name, claimed
from deepteach.reproduction.figures import Rows, by_seed, ranking
from deepteach.reproduction.scale import SCALES
from deepteach.reproduction.tables import TABLES, not_reproduced
from deepteach.runs.reader import UNIFORM, open_run
from deepteach.runs.storage import write_atomic

SETTING = ("data", "noise", "rate", "student")
HEAD = (
    "method", "n", "selected, error %", "gain, points", "95 % interval", "reading", "p (t, Holm)",
    "last, error %", "gain at last", "optimistic best %", "AUROC", "seconds", "paper %",
    "paper's gain",
)  # fmt: skip
EMA_HEAD = ("EMA at last, error %", "gain of EMAs")
"""Columns behind those where runs kept a moving average of their student."""


def summarise(rows: Rows, scale: str) -> tuple[TextTable, ...]:
    """A table per data set, noise and student of one table's rows, and one of what is missing.

    Gains are differences in error to uniform, paired by seed on the same schedule: above 0 is
    better. The paper's number is that of the cell that a row stands for, at the paper's scale.

    Raises:
        DataError: no rows, or a figure that is not a number.
    """
    if not rows:
        raise DataError("expected rows of results, found none: run `deepteach reproduce` first")
    if rows[0]["table"] in BEYOND:
        return claimed(rows, scale)
    published = _published(rows[0]["table"])
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    tables = [_table(key, group, published, scale) for key, group in groups.items()]
    missing = not_reproduced(rows[0]["table"], scale)
    if missing:
        lines = tuple(tuple(reason.split(": ", 1)) for reason in missing)
        tables.append(TextTable("Not reproduced", ("of the paper", "why"), lines))
    return tuple(tables)


def figure2_page(cells: Sequence[Cell], out: Path) -> Path:
    """`out/figure2.html`: the report of T1 with T0 and plain training beside it, all six panels.

    Of the first seed. Raises DataError where its runs are not finished.
    """
    runs = {cell.variant[:2]: open_run(out / cell.folder) for cell in cells if cell.seed == 0}
    beside = tuple(replace(runs[name], beside=()) for name in ("", "T0"))
    page = write_report(replace(runs["T1"], beside=beside))
    path = out / "figure2.html"
    write_atomic(path, page.read_bytes())
    return path


def _published(table: str) -> dict[tuple[str, ...], float]:
    """The paper's number by the columns of a row; the same cell may be of several scales."""
    every: list[Cell] = list(chain.from_iterable(TABLES[table].cells(s) for s in SCALES.values()))
    return {_key(cell): cell.published for cell in every if cell.published is not None}


def _key(cell: Cell) -> tuple[str, ...]:
    return tuple(str(getattr(cell, name)) for name in (*SETTING, "method", "variant"))


def _table(
    key: tuple[str, ...], rows: Rows, published: Mapping[tuple[str, ...], float], scale: str
) -> TextTable:
    by_method: dict[Name, dict[str, Mapping[str, str]]] = {}
    for row in rows:
        by_method.setdefault((row["method"], row["variant"]), {})[row["seed"]] = row
    selected = {name: by_seed(seeds, "test_error_selected") for name, seeds in by_method.items()}
    last = {name: by_seed(seeds, "test_error_last") for name, seeds in by_method.items()}
    plain = (UNIFORM, "")
    averaged = {name: by_seed(seeds, "test_error_ema_last") for name, seeds in by_method.items()}
    shown = any(averaged.values())
    gains = _gains(selected, plain)
    of_averages = _gains(averaged, plain)
    at_last = _gains(last, plain)
    base = published.get((*key, *plain))
    lines = []
    for name, seeds in by_method.items():
        gain, number_there = gains.get(name), published.get((*key, *name))
        points = interval = p = reading = late = theirs = UNKNOWN
        if gain is not None:
            points, interval = gain.points, gain.interval
            reading, p = gain.verdict, number(gain.p_holm, 3)
        if name in at_last:
            late = at_last[name].points
        if base is not None and number_there is not None and name != plain:
            theirs = f"{base - number_there:+.2f}"
        lines.append((
            " ".join(filter(None, (name[0], f"({name[1]})" if name[1] else ""))),
            str(len(selected[name])), mean_std(list(selected[name].values())), points, interval,
            reading, p, mean_std(list(last[name].values())), late,
            mean_std(list(by_seed(seeds, "test_error_best").values())),
            ranking(list(by_seed(seeds, "noise_auroc").values())),
            mean_std(list(by_seed(seeds, "seconds").values()), 0),
            number(number_there, 2), theirs,
            *((mean_std(list(averaged[name].values())),
               of_averages[name].points if name in of_averages else UNKNOWN) if shown else ()),
        ))  # fmt: skip
    data, noise, rate, student = key
    noisy = "clean labels" if noise == "none" else f"{noise} {100 * float(rate):g} %"
    title = f"{rows[0]['table']} at scale {scale}: {data}, {noisy}, {student}"
    head = (*HEAD, *EMA_HEAD) if shown else HEAD
    return TextTable(title, head, tuple(lines), _notes(selected))


def _notes(selected: Mapping[Name, Mapping[str, float]]) -> tuple[str, ...]:
    most = max(map(len, selected.values()))
    notes = [
        "test error in %, mean ± sample std over n seeds; selected: at the epoch with the best "
        "validation accuracy; optimistic best: chosen on the test set itself",
        "gain: error of uniform on the same schedule minus the method's, paired by seed; p values "
        "corrected over the methods (Holm); a row that trains on the trusted set selects on it, "
        "too: read its last epoch",
        "paper: the number of the same cell at the paper's scale, no spread reported",
    ]
    if 2 <= most <= LITTLE_POWER:
        notes.append(f"n <= {LITTLE_POWER}: these tests have little power")
    if (UNIFORM, "") not in selected:
        notes.append("no uniform baseline on this schedule: no gain can be stated")
    return tuple(notes)


def _gains(values: Mapping[Name, Mapping[str, float]], plain: Name) -> dict[Name, Gain]:
    base = values.get(plain, {})
    differences = {
        name: [base[seed] - error for seed, error in found.items() if seed in base]
        for name, found in values.items()
        if name != plain
    }
    return paired_gains({name: d for name, d in differences.items() if d})
