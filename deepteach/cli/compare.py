"""One table over runs: mean and spread over seeds, paired differences with intervals."""

from __future__ import annotations

import argparse

from deepteach.cli.parser import Parser


def add(parser: Parser) -> None:
    """Add the command's flags."""
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--html", metavar="FILE", help="also write a page")
    parser.add_argument("--format", choices=("text", "markdown", "csv"), default="text")


def run(options: argparse.Namespace) -> int:
    """Print the table, and write the page where one is asked for."""
    from deepteach.report.compare import compare
    from deepteach.report.html import write_comparison
    from deepteach.runs.reader import open_run

    runs = [open_run(path) for path in options.runs]
    comparison = compare(runs)
    render = {"text": "to_text", "markdown": "to_markdown", "csv": "to_csv"}[options.format]
    print(getattr(comparison, render)())
    if options.html:
        write_comparison(runs, options.html)
    return 0
