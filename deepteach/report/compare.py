"""Results as tables: one run's methods side by side, and many runs compared by seed.

Accuracies, F1 and R2 are compared in per cent, so differences are points. A method is paired with
the uniform baseline by seed, and only where every setting but the teacher's agrees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepteach.data.tasks.metrics import ACCURACY, Metric, metric_of
from deepteach.errors import DataError
from deepteach.report.pairing import seed_of, settings_of, variants_of
from deepteach.report.stats import LITTLE_POWER, Gain, paired_gains
from deepteach.report.table import UNKNOWN, TextTable, mean_std, number, percent, times
from deepteach.runs.reader import UNIFORM, Run
from deepteach.runs.storage import csv_text

EMA_LAST = "EMA, last %"
"""Column of the moving averages of the students, where there are any."""


@dataclass(frozen=True)
class MethodResult:
    """One method's result in the table at the end of a run; shares, of which 1 is perfect."""

    method: str
    last: float | None
    best: float | None
    selected: float | None
    auroc: float | None
    seconds: float | None
    relative_cost: float | None  # seconds over those of the uniform baseline
    last_ema: float | None = None  # of the moving average of the student, where one was kept
    metric: Metric = ACCURACY  # what they are shares of


def method_result(
    summary: Mapping[str, Any], baseline_seconds: float | None = None
) -> MethodResult:
    """The row of one `summary.json`; the cost is relative to the baseline's seconds."""
    seconds = summary.get("seconds")
    relative = seconds / baseline_seconds if seconds and baseline_seconds else None
    metric = metric_of(summary)
    return MethodResult(
        method=summary["method"],
        last=summary.get(metric.named("test", "last")),
        best=summary.get(metric.named("test", "best")),
        selected=summary.get(metric.named("test", "selected")),
        auroc=summary.get("noise_auroc"),
        seconds=seconds,
        relative_cost=relative,
        last_ema=summary.get(metric.named("test", "last", "_ema")),
        metric=metric,
    )


def method_results(run: Run) -> list[MethodResult]:
    """The rows of a run and of the runs beside it, the uniform baseline first."""
    runs = sorted([run, *run.beside], key=lambda other: other.method != UNIFORM)
    base = next((r.summary.get("seconds") for r in runs if r.method == UNIFORM), None)
    return [method_result(other.summary, base) for other in runs]


def results_table(rows: Sequence[MethodResult]) -> TextTable:
    """The methods of one run beside each other; "best" is named for what it is."""
    columns = (
        "method", "selected %", "last %", "optimistic best %", "AUROC", "seconds", "cost",
    )  # fmt: skip
    averaged = any(row.last_ema is not None for row in rows)
    cells = tuple(
        (
            row.method, percent(row.selected), percent(row.last), percent(row.best),
            number(row.auroc, 3), number(row.seconds, 1), times(row.relative_cost),
            *((percent(row.last_ema),) if averaged else ()),
        )
        for row in rows
    )  # fmt: skip
    columns = (*columns, *((EMA_LAST,) if averaged else ()))
    title = rows[0].metric.title if rows else ACCURACY.title
    notes = (
        f"test {title}; selected: at the epoch with the best validation {title};",
        "optimistic best: over epochs, chosen on the test set itself;",
        "AUROC: how well low weight finds wrong labels; cost: seconds over uniform's",
        "uniform: plain training, all weights 1",
    )
    return TextTable("Results", columns, cells, notes)


@dataclass(frozen=True)
class MethodRuns:
    """One method in one setting: its runs by seed, and its gain over the baseline."""

    method: str
    runs: Mapping[str, Run]  # by seed
    accuracy: Mapping[str, float]  # by seed, in per cent
    gain: Gain | None


@dataclass(frozen=True)
class Setting:
    """The runs of one data set, noise, student and schedule, by method."""

    title: str
    measure: str
    metric: Metric
    methods: tuple[MethodRuns, ...]
    notes: tuple[str, ...]

    def table(self) -> TextTable:
        tested = self.measure == self.metric.named("test", "selected")
        accuracy = "selected %" if tested else "best valid %"
        columns = (
            "method", "n", accuracy, "gain, points", "95 % interval", "reading", "p (t, Holm)",
            "p (Wilcoxon)", "last %", "optimistic best %", "AUROC", "seconds",
        )  # fmt: skip
        rows = [_table_row(found, self.metric) for found in self.methods]
        averaged = [_summaries(found, self.metric, "last", "_ema") for found in self.methods]
        if any(averaged):
            columns = (*columns, EMA_LAST)
            pairs = zip(rows, averaged, strict=True)
            rows = [(*row, mean_std(values)) for row, values in pairs]
        return TextTable(self.title, columns, tuple(rows), self.notes)


@dataclass(frozen=True)
class Comparison:
    """Every setting that the runs cover, and what keeps the settings apart."""

    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()

    def tables(self) -> tuple[TextTable, ...]:
        return tuple(setting.table() for setting in self.settings)

    def to_text(self) -> str:
        return "\n".join([*(table.to_text() for table in self.tables()), *self.notes])

    def to_markdown(self) -> str:
        parts = [table.to_markdown() for table in self.tables()]
        return "\n".join([*parts, *self.notes])

    def to_csv(self) -> str:
        """One line per setting and method, numbers unrounded, with every run's number."""
        head = (
            "setting measure method n mean std last_mean best_mean gain gain_std low high "
            "p p_holm p_wilcoxon noise_auroc seconds reading by_seed ema_last_mean"
        ).split()
        lines = [
            _csv_line(setting, found) for setting in self.settings for found in setting.methods
        ]
        return csv_text([head, *lines])


def compare(runs: Sequence[Run]) -> Comparison:
    """Group runs by setting and method, and pair each method with uniform by seed.

    The runs beside a run count as runs too. Accuracy is that of the epoch selected on
    validation; a setting in which a run has no test set shows validation accuracy instead.

    Raises:
        DataError: no runs.
    """
    if not runs:
        raise DataError("expected runs to compare, found none: name at least one run's folder")
    everything = {r.path.resolve(): r for run in runs for r in (run, *run.beside)}
    grouped: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    own = [*everything.values()]
    for run, key in zip(own, settings_of(own), strict=True):
        grouped.setdefault(key, []).append(run)
    shared = set.intersection(*(set(key) for key in grouped))
    settings = tuple(_setting(dict(key), set(key) - shared, grouped[key]) for key in grouped)
    notes = [f"{run.path}: {note}" for run in runs for note in run.notes]
    if len(grouped) > 1:
        names = ", ".join(sorted({name for key in grouped for name, _ in set(key) - shared}))
        notes.append(f"The tables differ in {names}: runs of different tables are not paired.")
    return Comparison(settings, tuple(notes))


def _setting(values: Mapping[str, str], apart: set[tuple[str, str]], runs: list[Run]) -> Setting:
    metric = metric_of(runs[0].summary)
    tested = all(run.summary.get(metric.named("test", "selected")) is not None for run in runs)
    measure = metric.named("test", "selected") if tested else metric.named("valid", "best")
    if tested:
        notes = [f"test {metric.title}, at the epoch selected on validation"]
    else:
        notes = [f"best validation {metric.title} (optimistic; a run has no test set)"]
    by_method: dict[str, dict[str, Run]] = {}
    for run, name in zip(runs, variants_of(runs), strict=True):
        seeds = by_method.setdefault(name, {})
        first = seeds.setdefault(seed_of(run), run)
        if not _same_result(first, run, metric):
            notes.append(
                f"{name}, seed {seed_of(run)} is there twice with different results: "
                f"{first.path} counts, {run.path} does not"
            )
    accuracy = {
        name: {
            seed: 100 * value
            for seed, run in sorted(seeds.items(), key=lambda item: _natural(item[0]))
            if (value := run.summary.get(measure)) is not None
        }
        for name, seeds in by_method.items()
    }
    base = accuracy.get(UNIFORM, {})
    differences = {
        name: [value - base[seed] for seed, value in values.items() if seed in base]
        for name, values in accuracy.items()
        if name != UNIFORM
    }
    gains = paired_gains({name: d for name, d in differences.items() if d})
    notes += _caveats(accuracy, gains)
    order = sorted(by_method, key=lambda name: (name != UNIFORM, name))
    methods = tuple(MethodRuns(m, by_method[m], accuracy[m], gains.get(m)) for m in order)
    return Setting(_title(values, apart), measure, metric, methods, tuple(notes))


def _caveats(accuracy: Mapping[str, Mapping[str, float]], gains: Mapping[str, Gain]) -> list[str]:
    """What a reader of the gains must know."""
    others = [name for name in accuracy if name != UNIFORM]
    if others and not accuracy.get(UNIFORM):
        return ["no uniform baseline on this schedule: no gain can be stated"]
    notes = []
    for name in others:
        pairs, runs = gains[name].n if name in gains else 0, len(accuracy[name])
        if pairs < runs:
            notes.append(f"{name}: {pairs} of {runs} seeds have a uniform run to pair with")
    small = [gain.n for gain in gains.values() if 2 <= gain.n <= LITTLE_POWER]
    if small:
        notes.append(
            f"n <= {LITTLE_POWER} pairs: the tests have little power (at {max(small)} "
            f"the smallest p value of Wilcoxon's is {2.0 ** (1 - max(small)):.3g})"
        )
    if gains:
        note = f"gain: mean of the paired differences to {UNIFORM}, by seed"
        tested = sum(gain.p is not None for gain in gains.values())
        many = f"; p values are corrected over {tested} methods (Holm)" if tested > 1 else ""
        notes.append(note + many)
    return notes


def _title(values: Mapping[str, str], apart: set[tuple[str, str]]) -> str:
    kind, rate = values.get("noise.kind", "none"), values.get("noise.rate", "")
    noise = "no added noise" if kind in ("none", "None") else f"{kind} noise {rate}"
    parts = [values.get("data", ""), noise, values.get("student", "")]
    shown = ["epochs", "batch_size", "lr"]
    shown += sorted({k for k, _ in apart} - set(shown) - {"data", "student", "noise.kind"})
    parts += [f"{k} {values[k]}" for k in shown if k in values and k != "noise.rate"]
    return ", ".join(part for part in parts if part)


def _same_result(one: Run, other: Run, metric: Metric) -> bool:
    figures = (("test", "selected"), ("valid", "best"), ("test", "last"))
    names = [metric.named(part, when) for part, when in figures]
    return all(one.summary.get(name) == other.summary.get(name) for name in names)


def _summaries(found: MethodRuns, metric: Metric, when: str, whose: str = "") -> list[float]:
    """Figures on the test set, in per cent."""
    return [100 * value for value in _fields(found, metric.named("test", when, whose))]


def _fields(found: MethodRuns, name: str) -> list[float]:
    values = (run.summary.get(name) for run in found.runs.values())
    return [value for value in values if value is not None]


def _table_row(found: MethodRuns, metric: Metric) -> tuple[str, ...]:
    gain = found.gain
    compared = (UNKNOWN,) * 5 if gain is None else (
        gain.points, gain.interval, gain.verdict,
        number(gain.p_holm, 3), number(gain.p_wilcoxon, 3),
    )  # fmt: skip
    return (
        found.method, str(len(found.accuracy)), mean_std(list(found.accuracy.values())), *compared,
        mean_std(_summaries(found, metric, "last")),
        mean_std(_summaries(found, metric, "best")),
        mean_std(_fields(found, "noise_auroc"), 3), mean_std(_fields(found, "seconds"), 1),
    )  # fmt: skip


def _csv_line(setting: Setting, found: MethodRuns) -> tuple[object, ...]:
    def mean(values: Sequence[float]) -> float | None:
        return float(np.mean(values)) if len(values) else None

    values, gain = list(found.accuracy.values()), found.gain
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    paired = (None,) * 7 if gain is None else (
        gain.mean, gain.std, gain.low, gain.high, gain.p, gain.p_holm, gain.p_wilcoxon
    )  # fmt: skip
    return (
        setting.title, setting.measure, found.method, len(values), mean(values), std,
        mean(_summaries(found, setting.metric, "last")),
        mean(_summaries(found, setting.metric, "best")), *paired,
        mean(_fields(found, "noise_auroc")), mean(_fields(found, "seconds")),
        gain.verdict if gain else None,
        "; ".join(f"{seed}: {value:.4f}" for seed, value in found.accuracy.items()),
        mean(_summaries(found, setting.metric, "last", "_ema")),
    )  # fmt: skip


def _natural(seed: str) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", seed)]
