"""Run the cells of a table of the paper at a named scale; the same command goes on."""

from __future__ import annotations

import argparse
import sys

from deepteach.cli.parser import Parser, refuse_below_one
from deepteach.names import expanded, known


def add(parser: Parser) -> None:
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
    from deepteach.reproduction.launch import EXECUTORS
    from deepteach.reproduction.runner import (
        execute,
        kept_rows,
        read_csv,
        result_rows,
        write_csv,
    )
    from deepteach.reproduction.summary import figure2_page, summarise
    from deepteach.reproduction.tables import TABLES, cells

    refuse_below_one(options, "jobs", "seeds")
    wanted = cells(options.table, options.scale, options.seeds)
    has_page = TABLES[options.table].page
    executor = known("executor", options.executor, EXECUTORS)
    out, failures = expanded(options.out), []
    if options.results is None:
        table, data = out / f"{options.table}.csv", options.data and expanded(options.data)
        kept = {} if has_page else kept_rows(table, wanted)
        failures = execute(
            [c for c in wanted if c.folder not in kept and not (options.headline and c.rank > 1)],
            data or None,
            out,
            cli.main,
            jobs=options.jobs,
            executor=executor,
            done=lambda: write_csv(result_rows(wanted, out, kept), table),
        )
        rows = result_rows(wanted, out, kept)
        if rows:
            write_csv(rows, table)
    else:
        table = expanded(options.results)
        rows = [row for row in read_csv(table) if row["table"] == options.table]
    if rows:
        for found in summarise(rows, options.scale):
            print(found.to_text() if options.format == "text" else found.to_markdown())
    missing = len(wanted) - len(rows) if options.results is None else 0
    if missing:
        print(f"{missing} of {len(wanted)} cells are missing: the same command goes on with them")
    print(f"results: {table}")
    if has_page and options.results is None and not missing:
        print(f"page: {figure2_page(wanted, out)}")
    for failure in failures:
        print(f"failed ({failure.code}): {failure.name}: {failure.reason}", file=sys.stderr)
    return failures[0].code if failures else 0
