"""What a report says of a run in words: its headline and its key figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepteach.data.tasks.metrics import METRICS, metric_of
from deepteach.report.pairing import setting_of
from deepteach.report.table import UNKNOWN, number, percent, times
from deepteach.runs.reader import UNIFORM, Run


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
    return tuple(fact for fact in found if fact.value not in (UNKNOWN, f"{UNKNOWN} %"))
