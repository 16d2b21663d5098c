"""The tables of the documents, from the committed results.

    python experiments/fill_docs.py

Each is written between its two markers, `<!-- NAME: start -->` and `<!-- NAME: end -->`.
"""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from deepteach.report.table import TextTable, mean_std
from deepteach.reproduction.runner import read_csv
from deepteach.reproduction.summary import HEAD, summarise
from deepteach.reproduction.tables import cells

Rows = list[dict[str, str]]

NOISES = {"flip-0.4": "flip 40 %", "uniform-0.6": "uniform 60 %", "clean": "clean labels"}


def read(path: str) -> Rows:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def table(header: str, lines: Iterable[Sequence[str]]) -> str:
    """`header` names the columns, between bars."""
    found = TextTable("", tuple(header.split(" | ")), tuple(map(tuple, lines)))
    return found.markdown_grid(numeric=False)


def number(text: str, digits: int) -> str:
    return f"{float(text):.{digits}f}" if text and float(text) else ""


def bench(path: str = "results/bench.csv") -> str:
    rows = read(path)
    plain = [row for row in rows if row["row"] == "plain"]
    said = "\n".join(
        f"{first['student']}, batch {first['batch']}, K = {first['interval']}, "
        f"{first['repeats']} rounds, {first['threads']} thread(s), torch {first['torch']}; a plain "
        f"step takes {float(first['plain_seconds']) * 1e3:.3g} ms."
        for first in plain
    )
    lines = [
        [
            *([row["student"]] if len(plain) > 1 else []),
            row["row"],
            row["optimizer"],
            row["window"] if row["window"] != "0" else "",
            number(row["ratio"], 3),
            f"{number(row['low'], 3)} to {number(row['high'], 3)}",
            number(row["units"], 2),
            number(row["peak_mib"], 0),
            number(row["extra_mib"], 0),
        ]
        for row in rows
    ]
    header = "row | optimizer | B | x plain | range | update, in steps | peak MiB | above start"
    header = f"student | {header}" if len(plain) > 1 else header
    return f"{said}\n\n{table(header, lines)}"


def precision() -> str:
    rows = read("results/precision.csv")
    lines = []
    for name in dict.fromkeys(row["precision"] for row in rows):
        cells = [name]
        for window in ("2", "5"):
            found = [r["cosine"] for r in rows if (r["precision"], r["window"]) == (name, window)]
            known = [float(value) for value in found if value != "refused"]
            middle = statistics.median(known) if known else 0.0
            cells += [f"{middle:.6f}", f"{min(known):.6f}"] if known else ["refused", ""]
        lines.append(cells)
    header = "precision | B = 2: median | worst | B = 5: median | worst"
    return table(header, [cells for cells in lines if cells[0] != "float64"])


def costs() -> str:
    rows = read("results/costs.csv")
    lines = [
        [
            f"`{row['method']}`",
            number(row["ratio"], 2),
            f"{number(row['low'], 2)} to {number(row['high'], 2)}",
            row["trainings"],
            number(row["whole"], 1),
        ]
        for row in rows
    ]
    return table("method | a step | range | trainings | in all", lines)


def methods() -> str:
    rows = read("results/methods.csv")
    known = read("results/costs.csv") if Path("results/costs.csv").exists() else []
    steps = {row["method"]: number(row["ratio"], 2) for row in known}
    parts = []
    for noise, name in NOISES.items():
        lines = []
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [r for r in rows if (r["noise"], r["method"]) == (noise, method)]
            if not own:
                continue
            errors = [spread(own, f"error_{kind}") for kind in ("last", "selected", "best")]
            cost = (
                "1.00"
                if method == "uniform"
                else steps.get(method) or steps.get(method.partition("+")[0], "")
            )
            lines.append([f"`{method}`", *errors, spread(own, "auroc", 3), cost, str(len(own))])
        header = "method | error, last | selected | best | AUROC | a step costs | runs"
        parts.append(f"**{name}**\n\n{table(header, lines)}")
    return "\n\n".join(parts)


def spread(rows: Rows, key: str, digits: int = 1) -> str:
    return mean_std([float(row[key]) for row in rows if row[key]], digits)


RESULTS = (
    "table6 table5 human controls table2 table3 table4 table7 transfer deeper figure2 table1"
).split()
SHOWN = (
    "method", "n", "last, error %", "selected, error %", "gain, points", "95 % interval",
    "reading", "gain at last", "AUROC", "paper %", "paper's gain",
)  # fmt: skip


def run_so_far(name: str) -> tuple[list[str], Sequence[TextTable]]:
    """What is missing of a table at the cpu scale, in words, and the tables of what is there."""
    path = Path(f"results/{name}.csv")
    if not path.exists():
        return [f"**{name}** has not been run yet."], []
    rows, whole = read_csv(path), len(cells(name, "cpu"))
    missing = [f"**{name}**: {len(rows)} of {whole} cells have been run."]
    return missing if len(rows) < whole else [], summarise(rows, "cpu")


def results() -> str:
    """The tables of the paper as far as they have been run, their main columns."""
    parts = []
    for name in RESULTS:
        said, found_tables = run_so_far(name)
        parts += said
        for found in found_tables:
            if found.columns == HEAD:
                columns = [HEAD.index(column) for column in SHOWN]
                lines = [[row[c] for c in columns] for row in found.rows]
                parts.append(f"**{found.title}**\n\n{table(' | '.join(SHOWN), lines)}")
    return "\n\n".join(parts)


def layers() -> str:
    """Relative errors by layer and window, or what became of it."""
    rows = read("results/layers.csv")
    lines = []
    for name in dict.fromkeys(row["layer"] for row in rows):
        own = {row["window"]: row for row in rows if row["layer"] == name}
        lines.append([name, *(layer_cell(own[window]) for window in ("1", "2", "8"))])
    versions = ", ".join(sorted({row["torch"] for row in rows}))
    counts = Counter(row["outcome"] for row in rows)
    said = "; ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    head = f"torch {versions}; {len(lines)} layers and variants, three windows each: {said}."
    return f"{head}\n\n{table('layer | B = 1 | B = 2 | B = 8', lines)}"


def layer_cell(row: dict[str, str]) -> str:
    if row["outcome"] == "exact":
        return row["error"]
    return f"{row['error']} (*)" if row["error"] else row["outcome"]


def refused() -> str:
    """What the scan refuses, and what torch cannot train, by message."""
    found: dict[str, list[str]] = {}
    for row in read("results/layers.csv"):
        if row["said"]:
            said = row["said"]
            said = said if row["outcome"] == "refused" else f"{row['outcome']} ({said})"
            named = f"`{row['layer']}`"
            group = found.setdefault(said, [])
            group += [named] if named not in group else []
    return "\n".join(f"- {', '.join(names)}: {said}" for said, names in found.items())


VERDICTS = ("sources", "imbalance", "labels")


def beyond() -> str:
    """The tables beyond the paper: the verdict on every setting."""
    parts: list[str] = []
    for name in VERDICTS:
        said, found = run_so_far(name)
        parts += [*said, _titled(found[0])]
    return "\n\n".join(parts)


def beyond_rows() -> str:
    """All rows of every setting of these tables."""
    return "\n\n".join(_titled(grid) for name in VERDICTS for grid in run_so_far(name)[1][1:])


RIVALS = {
    "plain": "uniform",
    "plain, twice": "uniform (twice the compute)",
    "never taught": "deep (never taught)",
    "fine-tune": "fine-tune (on the trusted set at last)",
    "riding": "riding (trusted set along, fixed weight 1)",
    "merged": "merged (trusted set merged in)",
    "probe": "probe (fixed weights)",
    "former default": "deep (probe alone)",
    "paper": "paper",
    "mwn": "mwn",
    "gce": "gce",
}
"""Columns of `gains`, rows that most settings have; what few have stands in its last column."""


def gains() -> str:
    """What deep gains over every other row, by setting: bold where the interval leaves 0 out."""
    lines = []
    for name in VERDICTS:
        for grid in run_so_far(name)[1][1:]:
            row, found, interval = (
                grid.columns.index(column)
                for column in ("row", "deep's gain over it", "95 % interval")
            )
            own = {line[row]: _gain(line[found], line[interval]) for line in grid.rows}
            named = [own.pop(rival, "-") for rival in RIVALS.values()]
            rest = {other: gain for other, gain in own.items() if not other.startswith("deep")}
            others = ", ".join(f"{other} {gain}" for other, gain in rest.items())
            lines.append([grid.title.partition(" (")[0], *named, others or "-"])
    return table(" | ".join(("over", *RIVALS, "others")), lines)


def _gain(mean: str, interval: str) -> str:
    if mean == "-":
        return mean
    low, found, high = interval.partition(" to ")
    shown = f"{float(mean.split()[0]):+.1f}"
    return f"**{shown}**" if found and (float(low) > 0 or float(high) < 0) else shown


def _titled(grid: TextTable) -> str:
    return f"**{grid.title}**\n\n{grid.markdown_grid(numeric=False)}"


def carried() -> str:
    """The default teacher taught on one set and kept for another."""
    said, found = run_so_far("carried")
    shown = ("method", "n", "last, error %", "gain at last", "AUROC")
    parts = list(said)
    for grid in found:
        columns = [HEAD.index(column) for column in shown]
        lines = [[row[c] for c in columns] for row in grid.rows]
        parts.append(f"**{grid.title}**\n\n{table(' | '.join(shown), lines)}")
    return "\n\n".join(parts)


LEAST_SEEDS = 3
"""Of a setting that the README names."""

SHOWN_FIRST = (
    "biased sources, 300 trusted",
    "biased sources, 1,000 trusted",
    "biased sources at 32x32, 300 trusted",
    "sources of biased sampling, 300 trusted",
    "sources of unequal labels, 1,000 trusted",
    "long tail of 100, 300 trusted",
    "long tail of 100, flip 40 %, 300 trusted",
    "human labels worse, 1,000 trusted",
    "flip 20 %, 1,000 trusted",
    "flip 40 %, 1,000 trusted",
    "clean labels, 1,000 trusted",
)
"""The README's settings: one of each kind, gains, ties and losses alike."""


def first() -> str:
    """What teaching gains where, in accuracies: the README's first table."""
    lines = []
    for name in VERDICTS:
        for row in run_so_far(name)[1][0].rows:
            setting, seeds, plain, best, paired, its, deep, _, _, gain, interval = row
            situation = setting.partition(" (")[0]
            if situation not in SHOWN_FIRST:
                continue
            if int(seeds) < LEAST_SEEDS or not paired.isdigit() or int(paired) < LEAST_SEEDS:
                continue
            shown = [f"{100 - float(error.split()[0]):.1f}" for error in (plain, its, deep)]
            low, found, high = interval.partition(" to ")
            if found and (float(low) > 0 or float(high) < 0):
                place = 2 if float(low) > 0 else 1
                shown[place] = f"**{shown[place]}**"
            name, _, variant = best.partition(" (")
            other = {"deep": "deep, ", "uniform": "plain, "}.get(name)
            rule = f"{shown[1]} ({name if other is None else other + variant.rstrip(')')})"
            own = seeds if paired == seeds else f"{seeds} (gain: {paired})"
            change = f"{gain.split()[0]} ({interval})"
            lines.append([situation, own, shown[0], rule, shown[2], change])
    return table(
        "what the training set is like | seeds | plain | best untaught | deep | gain", lines
    )


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "bench": ("docs/performance.md", bench),
    "bench_small": ("docs/performance.md", lambda: bench("results/bench_small.csv")),
    "precision": ("docs/performance.md", precision),
    "costs": ("docs/methods.md", costs),
    "methods": ("docs/methods.md", methods),
    "results": ("docs/results.md", results),
    "layers": ("docs/correctness.md", layers),
    "refused": ("docs/correctness.md", refused),
    "beyond": ("docs/beyond.md", beyond),
    "gains": ("docs/beyond.md", gains),
    "beyond_rows": ("docs/beyond-rows.md", beyond_rows),
    "carried": ("docs/beyond.md", carried),
    "first": ("README.md", first),
}


def main() -> None:
    for name, (page, body) in TABLES.items():
        path = Path(page)
        try:
            filled = body()
        except FileNotFoundError as missing:
            print(f"{missing.filename} is not there: the table {name} is left as it is")
            continue
        text = path.read_text(encoding="utf-8")
        start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
        head, rest = text.split(start)
        _, tail = rest.split(end)
        path.write_text(f"{head}{start}\n{filled}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
