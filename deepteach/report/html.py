"""A run, or several runs compared, as one HTML file that needs nothing but a browser.

Pictures are inlined and follow the reader's light or dark; the page's policy forbids any
request; all text from the run goes through autoescaping.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from deepteach.data.tasks.metrics import METRICS
from deepteach.data.tasks.regression import Regression
from deepteach.errors import ConfigError, DataError
from deepteach.names import expanded
from deepteach.report import plots
from deepteach.report.compare import Comparison, Setting, compare, method_results, results_table
from deepteach.report.distrust import distrust_tables
from deepteach.report.pairing import flat
from deepteach.report.plots.curves import DIAGNOSTICS, SHARES, curves_of, runs_beside
from deepteach.report.plots.style import to_svg
from deepteach.report.summary import Headline, headline_of
from deepteach.report.suspects import TOP_SHOWN, Suspect, suspects_of
from deepteach.report.table import TextTable, number
from deepteach.report.workbench import Workbench, workbench_of
from deepteach.runs.reader import UNIFORM, Run, open_run
from deepteach.runs.storage import disk_errors, write_atomic

_MARK = '<meta name="generator" content="deepteach">'
_EPOCH_COLUMNS = (
    *("epoch step seconds lr train_loss valid_loss".split()),
    *(metric.column(part) for metric in METRICS.values() for part in ("valid", "test")),
    *("effective_sample_size drift meta_gradient_norm updates noise_auroc".split()),
)
_SCRIPTS = ("report.js", "decisions.js", "workbench.js")
_STYLES = ("report.css", "workbench.css")
_QUALITY = {
    "window": "steps of the window",
    "longer": "steps of the longer window",
    "cosine": "cosine of its meta-gradient to that of the longer window",
    "differences": "cosine to its form by finite differences",
    "drift": "drift of the undone steps",
    "taught_steps": "a taught step, in plain steps",
    "update_steps": "an update of the teacher, in plain steps",
    "plain_seconds": "seconds of a plain step",
}
"""What is shown of `training.diagnostics.Quality`."""


@dataclass(frozen=True)
class Picture:
    """One figure, and what it says to those who can't see it."""

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, and what is shown below them."""

    title: str
    text: str = ""
    pictures: tuple[Picture, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    tables: tuple[TextTable, ...] = ()
    bench: Workbench | None = None
    """Where the suspects are to be judged, not only shown."""


def write_report(run: Run | str | Path) -> Path:
    """Write `report.html` into the run's folder, and return its path.

    Raises:
        DataError: the folder is not a finished run's.
        ConfigError: there is a `report.html` that deepteach did not write.
        StorageError: it cannot be written.
    """
    run = run if isinstance(run, Run) else open_run(run)
    _refuse_foreign(run.path / "report.html")
    sections = [
        _results(run), _curves(run), *_weights(run), _judged(run), _distrusted(run), _health(run),
        _cost(run), _settings(run),
    ]  # fmt: skip
    page = _render(f"deepteach report: {run.path.resolve().name}", headline_of(run), sections)
    path = run.path / "report.html"
    write_atomic(path, page.encode())
    return path


def write_comparison(runs: Sequence[Run], path: str | Path) -> Path:
    """Write the comparison of several runs as one HTML file, and return its path.

    Raises:
        DataError: no runs.
        ConfigError: `path` is a file that deepteach did not write.
        StorageError: it cannot be written.
    """
    path = expanded(path)
    _refuse_foreign(path)
    comparison = compare(runs)
    count = sum(len(one.runs) for setting in comparison.settings for one in setting.methods)
    headline = Headline(
        f"{count} runs compared",
        "Mean ± sample standard deviation over seeds; a gain is the mean of the paired "
        "differences to the uniform baseline on the same schedule.",
        "plain",
        (),
        comparison.notes,
    )
    sections = [part for setting in comparison.settings for part in _compared(setting)]
    sections.append(_every_run(comparison))
    write_atomic(path, _render("deepteach comparison", headline, sections).encode())
    return path


def _results(run: Run) -> Section:
    return Section("Methods side by side", tables=(results_table(method_results(run)),))


def _curves(run: Run) -> Section:
    pictures = [
        picture(
            partial(plots.learning_curves, run, columns=[column]),
            f"{title} over the epochs for {', '.join(runs_beside(run))}",
        )
        for column, (title, _) in curves_of(run).items()
    ]
    return Section("Learning curves", "", _drawn(pictures))


def _weights(run: Run) -> list[Section]:
    taught = {name: one for name, one in runs_beside(run).items() if one.method != UNIFORM}
    return [_weighed(name, one) for name, one in taught.items()]


def _weighed(name: str, run: Run) -> Section:
    """The weights of one run: a row of the paper's Figure 2, their spread, their course."""
    try:
        places = plots.states_map(run.samples["internal"])
    except (KeyError, DataError):
        places = None
    figures: list[Picture | None] = [
        picture(
            partial(plots.weight_against_loss, run, limit=2000),
            f"{name}: weight of each training sample against its loss, coloured by label",
        )
    ]
    if places is not None:
        figures += [
            picture(
                partial(plots.states_by_class, run, positions=places),
                f"{name}: map of the internal states, coloured by given label",
            ),
            picture(
                partial(plots.states_by_weight, run, positions=places),
                f"{name}: the same map coloured by weight, red large and blue small",
            ),
        ]
    figures += [
        picture(partial(plots.weight_histogram, run), f"{name}: histogram of the weights"),
        picture(
            partial(plots.weights_over_time, run),
            f"{name}: median and quantiles of the weights over the epochs",
        ),
    ]
    text = (
        "Weights sum to the number of samples: 1 is the weight of plain training. Maps "
        "place samples with similar internal states close together."
    )
    return Section(f"What {name} weighs", text, _drawn(figures))


def _judged(run: Run) -> Section:
    """The suspects, to be judged; what was judged belongs to this run alone."""
    section = _suspects(run)
    return replace(section, bench=workbench_of(run, section.suspects))


def _distrusted(run: Run, title: str = "Where labels are distrusted") -> Section:
    if run.method == UNIFORM:
        return Section(title)
    text = (
        "Distrusted: the run suggests another label, as the student predicts another one and the "
        "sample weighs less than in plain training."
    )
    classes = run.summary.get("task") != Regression.name
    return Section(title, text, tables=distrust_tables(run.weights, classes=classes))


def _suspects(
    run: Run, title: str = "Samples the teacher trusts least", limit: int | None = None
) -> Section:
    if run.method == UNIFORM:
        return Section(title, "Plain training trusts every sample alike: there is nothing to rank.")
    suspects, table = suspects_of(run, limit)
    text = "Ranked by weight, least first. The command deepteach weights lists all of them."
    return Section(title, text, suspects=suspects, tables=(table,))


def _health(run: Run) -> Section:
    pictures = [
        picture(
            partial(plots.diagnostics, run, columns=[column]),
            f"{DIAGNOSTICS[column][0]} over the epochs",
        )
        for column in DIAGNOSTICS
    ]
    columns = [c for c in _EPOCH_COLUMNS if any(line.get(c) is not None for line in run.metrics)]
    rows = tuple(tuple(_cell(line.get(c)) for c in columns) for line in run.metrics)
    text = (
        "The effective sample size says on how many samples the weights rest (100 % are "
        "equal weights); drift is what undoing the steps loses to rounding."
    )
    epochs = TextTable("Every epoch", tuple(columns), rows)
    return Section(
        "Effective sample size, drift, meta-gradient", text, _drawn(pictures), (), (epochs,)
    )


def _cost(run: Run) -> Section:
    costs = {"seconds": number(run.summary.get("seconds"), 1)}
    if run.baseline is not None:
        costs["seconds of the baseline"] = number(run.baseline.summary.get("seconds"), 1)
    costs["updates of the teacher"] = str(sum(line.get("updates") or 0 for line in run.metrics))
    costs["parameters of the teacher"] = _cell(run.summary.get("teacher_parameters"))
    return Section("Cost", tables=(_pairs("What the run cost", costs), *_measured(run)))


def _measured(run: Run) -> list[TextTable]:
    """What a run of some length measured of its own meta-gradients, at its start and end."""
    moments: dict[str, dict[str, float | None]] = run.summary.get("gradient_quality") or {}
    if not moments:
        return []
    names = list(dict.fromkeys(name for found in moments.values() for name in found))
    told = [(key, _QUALITY[key]) for key in _QUALITY if key in names]
    rows = tuple((text, *(_cell(m.get(key)) for m in moments.values())) for key, text in told)
    return [TextTable("The meta-gradient, measured on copies", ("", *moments), rows)]


def _settings(run: Run) -> Section:
    tables = [_pairs("Settings", flat(run.config))]
    if run.environment:
        where = dict(run.environment)
        if isinstance(where.get("command"), list):
            where["command"] = shlex.join(map(str, where["command"]))
        tables.append(_pairs("Where it ran", flat(where)))
    return Section("Settings", tables=tuple(tables))


def _compared(setting: Setting) -> list[Section]:
    """What was gained, and for each taught method the weights of its first seed."""
    groups = {one.method: list(one.runs.values()) for one in setting.methods}
    gains = {one.method: one.gain for one in setting.methods if one.gain is not None}
    pictures = [
        picture(
            partial(plots.mean_curves, groups, columns=[column]),
            f"{name} over the epochs: mean and range over seeds of {', '.join(groups)}",
        )
        for column, (name, _) in {**curves_of(*next(iter(groups.values()))), **SHARES}.items()
    ]
    if gains:
        words = "; ".join(
            f"{name} {gain.mean:+.2f}, {gain.verdict}" for name, gain in gains.items()
        )
        draw = partial(plots.gain_intervals, gains)
        pictures.insert(0, picture(draw, f"gain over the uniform baseline in points: {words}"))
    sections = [Section(setting.title, "", _drawn(pictures), (), (setting.table(),))]
    for one in setting.methods:
        seed, run = next(iter(one.runs.items()))
        if run.method != UNIFORM:
            name = f"{one.method} (seed {seed})"
            sections.append(_weighed(name, run))
            sections.append(_suspects(run, f"Samples that {name} trusts least", TOP_SHOWN))
            sections.append(_distrusted(run, f"Where {name} distrusts labels"))
    return sections


def _every_run(comparison: Comparison) -> Section:
    rows = tuple(
        (one.method, seed, f"{value:.2f}", setting.title, str(one.runs[seed].path))
        for setting in comparison.settings
        for one in setting.methods
        for seed, value in one.accuracy.items()
    )
    titles = dict.fromkeys(setting.metric.title for setting in comparison.settings)
    columns = ("method", "seed", f"{' or '.join(titles)} %", "setting", "folder")
    return Section("Every run", tables=(TextTable("Every run's number", columns, rows),))


def _pairs(title: str, values: dict[str, str]) -> TextTable:
    return TextTable(title, ("name", "value"), tuple(values.items()))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _drawn(pictures: Sequence[Picture | None]) -> tuple[Picture, ...]:
    return tuple(one for one in pictures if one is not None)


def picture(draw: Callable[..., Figure], alt: str) -> Picture | None:
    """The figure inlined, or None where the run holds nothing to draw."""
    try:
        figure = draw()
    except DataError:
        return None
    data = base64.b64encode(to_svg(figure)).decode()
    width, height = figure.get_size_inches() * 96
    return Picture(f"data:image/svg+xml;base64,{data}", alt, round(width), round(height))


def _render(title: str, headline: Headline, sections: Sequence[Section]) -> str:
    jinja = Environment(
        loader=PackageLoader("deepteach.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script, style = (
        "\n".join(jinja.get_template(name).render() for name in names)
        for names in (_SCRIPTS, _STYLES)
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return jinja.get_template("report.html.j2").render(
        title=title, mark=Markup(_MARK), script=Markup(script), script_hash=digest,
        style=Markup(style), headline=headline,
        sections=[s for s in sections if s.text or s.pictures or s.suspects or s.tables],
    )  # fmt: skip


def _refuse_foreign(path: Path) -> None:
    """Before any work: a file that deepteach did not write is never overwritten."""
    with disk_errors(path):
        if path.is_dir() or (path.exists() and _MARK not in path.read_text("utf-8", "replace")):
            raise ConfigError(
                f"{path} is not a report of deepteach's and is left as it is: move it away or "
                "name another file"
            )
