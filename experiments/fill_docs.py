"""The table of docs/performance.md from results/bench.csv.

deepteach bench --student resnet32 --batch_size 32 --repeats 5 --out results/bench.csv
python experiments/bench_table.py
"""

from __future__ import annotations

import csv
from pathlib import Path

START, END = "<!-- bench: start -->", "<!-- bench: end -->"


def table(path: Path) -> str:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    first = rows[0]
    said = (
        f"{first['student']}, batch {first['batch']}, K = {first['interval']}, "
        f"{first['repeats']} rounds, {first['threads']} thread(s), torch {first['torch']}; a plain "
        f"step takes {float(first['plain_seconds']) * 1e3:.0f} ms."
    )
    lines = [
        said,
        "",
        "| row | B | x plain training | range | update, in steps | peak MiB | above start |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        units = f"{float(row['units']):.2f}" if float(row["units"]) else ""
        window = row["window"] if row["window"] != "0" else ""
        spread = f"{float(row['low']):.3f}-{float(row['high']):.3f}"
        memory = [f"{float(row[key]):.0f}" if row[key] else "" for key in ("peak_mib", "extra_mib")]
        cells = [row["row"], window, f"{float(row['ratio']):.3f}", spread, units, *memory]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    page = Path("docs/performance.md")
    text = page.read_text()
    head, rest = text.split(START)
    _, tail = rest.split(END)
    body = table(Path("results/bench.csv"))
    page.write_text(f"{head}{START}\n{body}\n{END}{tail}")


if __name__ == "__main__":
    main()
