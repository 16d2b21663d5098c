"""One HTML file about a run, in its folder; it needs no network."""

from __future__ import annotations

import argparse

from deepteach.cli.parser import Parser


def add(parser: Parser) -> None:
    """Add the command's flags."""
    parser.add_argument("run", metavar="RUN")


def run(options: argparse.Namespace) -> int:
    """Write the page and print its place."""
    from deepteach.report.html import write_report
    from deepteach.runs.reader import open_run

    print(write_report(open_run(options.run)))
    return 0
