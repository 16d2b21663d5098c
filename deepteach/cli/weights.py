"""The training samples of a run, ranked by how little its teacher trusts them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deepteach.cli.parser import Parser, refuse_below_one


def add(parser: Parser, full: bool) -> None:
    """Add the command's flags."""
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--top", type=int, metavar="N", help="only the first N")
    parser.add_argument("--out", metavar="FILE", help=".csv or .parquet; default: the terminal")


def run(options: argparse.Namespace) -> int:
    """Print or write the samples."""
    from deepteach.report.export import ranked, write
    from deepteach.runs.reader import open_run

    refuse_below_one(options, "top")
    table = ranked(open_run(options.run).weights, options.top)
    if options.out is None:
        sys.stdout.write(table.csv())
    else:
        write(table, Path(options.out))
    return 0
