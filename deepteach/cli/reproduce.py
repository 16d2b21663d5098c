"""Run the cells of a table of the paper at a named scale; the same command goes on."""

from __future__ import annotations

import argparse
import sys

from deepteach.cli.parser import Parser, refuse_below_one
from deepteach.names import expanded, known


def add(parser: Parser, full: bool) -> None:
    """Add the command's flags."""
    parser.add_argument("table", metavar="TABLE", help="table1 to table7, ..., sources, labels")
    parser.add_argument("--scale", default="cpu", metavar="NAME", help="paper, cpu or smoke")
    parser.add_argument("--data", metavar="DIR", help="data sets under fixed names")
    parser.add_argument("--out", default="runs/reproduce", metavar="DIR")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--executor", default="processes", metavar="NAME", help="or ray")
    parser.add_argument("--seeds", type=int, metavar="N", help="default: the scale's")
    parser.add_argument("--headline", action="store_true", help="run no rows but the headline's")
    parser.add_argument("--results", metavar="FILE.csv", help="only show this file's rows")
    parser.add_argument("--format", choices=("text", "markdown"), default="text")


def run(options: argparse.Namespace) -> int:
    """Run the cells that are missing and print the table; the exit code of the first failure."""
    from deepteach import cli
    from deepteach.reproduction import launch as executors
    from deepteach.reproduction import runner as reproduce
    from deepteach.reproduction import summary
    from deepteach.reproduction import tables as recipes

    refuse_below_one(options, "jobs", "seeds")
    cells = recipes.cells(options.table, options.scale, options.seeds)
    executor = known("executor", options.executor, executors.EXECUTORS)
    out, failures = expanded(options.out), []
    if options.results is None:
        table, data = out / f"{options.table}.csv", options.data and expanded(options.data)
        # Its page is drawn from the runs themselves: rows are not enough.
        kept = {} if options.table == "figure2" else reproduce.kept_rows(table, cells)
        failures = reproduce.execute(
            [c for c in cells if c.folder not in kept and not (options.headline and c.rank > 1)],
            data or None,
            out,
            cli.main,
            jobs=options.jobs,
            executor=executor,
            done=lambda: reproduce.write_csv(reproduce.result_rows(cells, out, kept), table),
        )
        rows = reproduce.result_rows(cells, out, kept)
        if rows:
            reproduce.write_csv(rows, table)
    else:
        table = expanded(options.results)
        rows = [row for row in reproduce.read_csv(table) if row["table"] == options.table]
    if rows:
        for found in summary.summarise(rows, options.scale):
            print(found.to_text() if options.format == "text" else found.to_markdown())
    missing = len(cells) - len(rows) if options.results is None else 0
    if missing:
        print(f"{missing} of {len(cells)} cells are missing: the same command goes on with them")
    print(f"results: {table}")
    if options.table == "figure2" and options.results is None and not missing:
        print(f"page: {summary.figure2_page(cells, out)}")
    for failure in failures:
        print(f"failed ({failure.code}): {failure.name}: {failure.reason}", file=sys.stderr)
    return failures[0].code if failures else 0
