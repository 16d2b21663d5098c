"""The cost of a teacher update against plain training and against peers that are installed."""

from __future__ import annotations

import argparse

from deepteach.cli.parser import Parser, refuse_below_one
from deepteach.errors import ConfigError
from deepteach.names import expanded


def add(parser: Parser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "--student",
        metavar="NAMES",
        help="with commas between: mlp-64, resnet8-16, or any that takes images of 3x32x32",
    )
    parser.add_argument("--batch_size", type=int, metavar="N", help="default: the student's own")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    parser.add_argument("--resume", action="store_true", help="go on with the rows of --out")
    parser.add_argument("--methods", action="store_true", help="a step of each method instead")
    parser.add_argument("--out", metavar="FILE.csv", help="default: in results/")


def run(options: argparse.Namespace) -> int:
    """Measure, append to the file row by row, print the table."""
    from deepteach.benchmarks.method_cost import measure_methods, method_table
    from deepteach.benchmarks.peers import PEERS
    from deepteach.benchmarks.plan import BENCH_STUDENTS, plans
    from deepteach.benchmarks.records import append, read_costs, refuse_overwrite
    from deepteach.benchmarks.update_cost import measure_updates, update_table
    from deepteach.training.progress import Output

    refuse_below_one(options, "batch_size", "repeats", "threads")
    path = expanded(options.out or f"results/{'costs' if options.methods else 'bench'}.csv")
    going_on = options.resume and path.exists() and not options.methods
    rows = read_costs(path) if going_on else []
    if not going_on:
        refuse_overwrite(path)
    wanted = plans(
        ",".join(BENCH_STUDENTS) if options.student is None else options.student,
        options.batch_size,
        options.repeats,
        threads=options.threads,
        quick=options.quick,
    )
    strangers = {row.student for row in rows} - {plan.student for plan in wanted}
    if strangers:
        raise ConfigError(f"the rows of {path} are of {min(strangers)!r} too: use another --out")
    console = Output()
    with console.status("") as status:
        if options.methods:
            repeats = 1 if options.quick else options.repeats
            found = measure_methods(repeats, status.update)
            for cost in found:
                append(cost, path)
            table = method_table(found, "digits: ratios to plain training")
        else:
            for plan in wanted:
                done = [row for row in rows if row.student == plan.student]
                for row in measure_updates(plan, status.update, done):
                    append(row, path)
            rows = read_costs(path)
            table = update_table(rows, "ratios to plain training")
    console.print(table.to_rich())
    for name in PEERS:
        if rows and name not in {row.row for row in rows}:
            console.print(f"{name} is not installed: pip install 'deepteach[bench]'", markup=False)
    console.print(f"written: {path}", soft_wrap=True, markup=False)
    return 0
