"""The training samples of a run, ranked by how little its teacher trusts them."""

from __future__ import annotations

import argparse
import sys

from deepteach.cli.parser import Parser, refuse_below_one
from deepteach.errors import ConfigError
from deepteach.names import expanded


def add(parser: Parser) -> None:
    """Add the command's flags."""
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--top", type=int, metavar="N", help="only the first N")
    parser.add_argument("--out", metavar="FILE", help=".csv or .parquet; default: the terminal")
    parser.add_argument(
        "--clean",
        metavar="FILE",
        help="write the data set without label issues, in the format it came in",
    )


def run(options: argparse.Namespace) -> int:
    """Print or write the samples, or write the data set without its label issues."""
    from deepteach.report.cleaned import write_cleaned
    from deepteach.report.export import ranked, write
    from deepteach.runs.reader import open_run

    refuse_below_one(options, "top")
    finished = open_run(options.run)
    if options.clean is not None:
        if options.out is not None or options.top is not None:
            raise ConfigError("--clean writes the data set; give it without --out and --top")
        print(write_cleaned(finished, expanded(options.clean)))
        return 0
    table = ranked(finished.weights, options.top)
    if options.out is None:
        sys.stdout.write(table.csv())
    else:
        write(table, expanded(options.out))
    return 0
