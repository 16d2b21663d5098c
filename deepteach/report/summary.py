"""What a report says of a run in words: its headline, its key figures, its suspects."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from deepteach.data.tasks.metrics import METRICS, metric_of
from deepteach.errors import DataError
from deepteach.report.pairing import UNIFORM, setting_of
from deepteach.report.plots.samples import displayable
from deepteach.report.table import TextTable, number, percent, times
from deepteach.runs.reader import Run
from deepteach.runs.weights import Weights

_ROW_FEATURES = 8  # raw columns of a sample that is not an image


@dataclass(frozen=True)
class Fact:
    """One key figure: what it is, its value, and what to know about it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """The report's first screen; `tone` is "good", "bad" or "plain"."""

    title: str
    text: str
    tone: str
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Suspect:
    """A suspicious sample as an image, with its labels."""

    image: str
    index: int
    given: str
    predicted: str
    true: str
    weight: str


def headline_of(run: Run) -> Headline:
    """The gain over plain training on the same schedule, said as it is: also when worse."""
    base: Mapping[str, Any] | None = (
        run.baseline.summary if run.baseline else run.summary.get("baseline")
    )
    notes = list(run.notes)
    metric = metric_of(run.summary)
    measure, what = metric.named("test", "selected"), f"test {metric.title}"
    if run.summary.get(measure) is None:
        measure, what = metric.named("valid", "best"), f"validation {metric.title}"
        notes.append(
            f"There is no test set: the validation {metric.title} also chose the epoch, and may "
            "have trained the teacher, so it is optimistic."
        )
    own = run.summary.get(measure)
    other = base.get(measure) if isinstance(base, dict) else None
    setting = f"{run.method} on {run.summary.get('data', 'unnamed data')}, {noise_of(run)}"
    title, tone = f"{percent(own)} % {what}", "plain"
    if own is not None and other is not None and run.method != UNIFORM:
        gain = round(100 * (own - other), 2)
        tone = "good" if gain > 0 else "bad" if gain < 0 else "plain"
        side = f"{abs(gain):.2f} points {'above' if gain > 0 else 'below'}"
        title = f"{side if gain else 'No difference from'} plain training"
        text = f"{setting}: {percent(own)} % {what} against {percent(other)} % of plain training"
        if run.baseline is not None and setting_of(run.baseline) != setting_of(run):
            text, tone = f"{text}, on another schedule.", "plain"
            notes.append(
                "The baseline's settings differ from the run's: the difference is not the "
                "teacher's alone."
            )
        else:
            text += " on the same schedule, at the epoch that validation selected."
        notes.append(
            "One seed: a difference without an interval. The command "
            "deepteach compare gives one over several seeds."
        )
    elif run.method == UNIFORM:
        text = f"{setting}: plain training, every sample weighs the same."
    else:
        text = f"{setting}. No plain training was run beside it, so no gain can be stated."
    return Headline(title, text, tone, facts_of(run, base), tuple(notes))


def noise_of(run: Run) -> str:
    """The noise that was added to the training labels, in words."""
    noise = run.summary.get("noise")
    kind = noise.get("kind") if isinstance(noise, dict) else None
    if not isinstance(noise, dict) or kind in (None, "none"):
        return "no added label noise"
    rate = noise.get("rate")
    return f"{kind} label noise" + (f" {rate:.0%}" if isinstance(rate, float) else "")


def facts_of(run: Run, base: Mapping[str, Any] | None) -> tuple[Fact, ...]:
    """The key figures that the run knows."""
    s, metric = run.summary, metric_of(run.summary)
    found = [
        Fact("Test, selected", percent(s.get(metric.named("test", "selected"))) + " %",
             "at the best validation epoch"),
        Fact("Test, last", percent(s.get(metric.named("test", "last"))) + " %",
             "after the last epoch"),
        Fact("Test, best", percent(s.get(metric.named("test", "best"))) + " %",
             "optimistic: chosen on the test set"),
        Fact("Test, average", percent(s.get(metric.named("test", "last", "_ema"))) + " %",
             "of the moving average of the student, after the last epoch"),
        Fact("Validation, best", percent(s.get(metric.named("valid", "best"))) + " %"),
        *(Fact(f"{other.title}, selected", number(s.get(other.named("test", "selected")), 4),
               "on the test set, in the unit of the targets")
          for other in METRICS.values() if not other.share),
        Fact("Wrong labels found", number(s.get("noise_auroc"), 3),
             "AUROC of low weight; 0.5 is chance"),
    ]  # fmt: skip
    sizes = run.column("effective_sample_size")
    if np.isfinite(sizes).any():
        last = 100 * float(sizes[np.isfinite(sizes)][-1])
        found.append(Fact("Effective samples", f"{last:.0f} %", "what the weights rest on"))
    seconds, usual = s.get("seconds"), (base or {}).get("seconds")
    if seconds is not None:
        cost = f"{times(seconds / usual)} plain training" if usual else ""
        found.append(Fact("Time", f"{seconds:.1f} s", cost))
    return tuple(fact for fact in found if not fact.value.startswith("-"))


def suspects_of(run: Run) -> tuple[tuple[Suspect, ...], TextTable]:
    """The least trusted samples: as images where they are images, and always as rows."""
    raw = run.samples.get("suspects")
    if raw is None or "suspect_index" not in run.samples:
        order = np.argsort(run.weights.weight, kind="stable")[:48]
        return (), _suspect_table(run.weights.take(order), None)
    rows = run.weights.at(run.samples["suspect_index"])
    order = np.argsort(rows.weight, kind="stable")
    rows, raw = rows.take(order), raw[order]
    try:
        shown = displayable(raw)
    except DataError:
        flat = raw.reshape(len(raw), -1) if len(raw) else None
        return (), _suspect_table(rows, flat)
    found = tuple(
        Suspect(
            _png(image), int(rows.index[i]), str(rows.given[i]), str(rows.predicted[i]),
            str(rows.true[i]), f"{rows.weight[i]:.3g}",
        )
        for i, image in enumerate(shown)
    )  # fmt: skip
    return found, _suspect_table(rows, None)


def _suspect_table(rows: Weights, raw: NDArray[Any] | None) -> TextTable:
    columns = ["index", "weight", "given label", "predicted label", "loss"]
    more_columns = {
        "group": rows.group,
        "path": rows.path,
        "true label": rows.true if rows.known.any() else None,
    }
    told = {name: column for name, column in more_columns.items() if column is not None}
    columns += told
    count = 0 if raw is None else min(_ROW_FEATURES, raw.shape[1])
    cells = []
    for i in range(len(rows)):
        cell = [
            str(rows.index[i]), f"{rows.weight[i]:.4g}", str(rows.given[i]),
            str(rows.predicted[i]), f"{rows.loss[i]:.4g}",
            *(str(column[i]) for column in told.values()),
        ]  # fmt: skip
        cells.append((*cell, *(f"{raw[i, j]:.4g}" for j in range(count) if raw is not None)))
    columns += [f"feature {j}" for j in range(count)]
    more = raw is not None and raw.shape[1] > count
    notes = (f"the first {count} of {raw.shape[1]} features",) if more and raw is not None else ()
    return TextTable("Least trusted samples", tuple(columns), tuple(cells), notes)


def _png(image: NDArray[np.float64]) -> str:
    out = io.BytesIO()
    grey = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image
    imsave(out, grey, format="png", metadata={"Software": ""})
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
