"""The command line. Every error is one line with its remedy; --debug adds the traceback."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from deepteach.errors import ConfigError, DeepTeachError
from deepteach.names import known
from deepteach.training import config as configuration
from deepteach.training.progress import Watcher, watching
from deepteach.training.signals import Interrupted


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: errors.print(f"deepteach: warning: {message}")
        return _run(arguments, debug, errors)


def _run(arguments: list[str], debug: bool, errors: Console) -> int:
    try:
        options, rest = _parser().parse_known_args([a for a in arguments if a != "--debug"])
        if rest:
            raise ConfigError(_unexpected(rest, arguments[0]))
        return options.command(options) or 0
    except Interrupted as stop:
        errors.print(f"deepteach: {stop}; the state is committed, go on with --resume")
        return stop.code
    except KeyboardInterrupt:
        errors.print("deepteach: interrupted by SIGINT")
        return 130
    except DeepTeachError as error:
        if debug:
            errors.print_exception()
        errors.print(f"deepteach: {' '.join(str(error).split())}")
        return error.exit_code
    except OSError as error:
        if debug:
            errors.print_exception()
        errors.print(f"deepteach: {error}: check the path and the disk, then --resume")
        return 5


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser() -> _Parser:
    parser = _Parser(prog="deepteach", description=__import__("deepteach").__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    train = commands.add_parser("train", allow_abbrev=False, help="train a student and its teacher")
    train.add_argument("--config", metavar="FILE.yaml", help="settings; flags win over them")
    train.add_argument("--resume", action="store_true", help="go on in --out")
    train.add_argument("--no-report", action="store_true", help="write no report.html")
    _add_settings(train.add_argument_group("settings (also keys of --config)"))
    train.set_defaults(command=_train)

    compare = commands.add_parser("compare", help="one table over runs")
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument("--html", metavar="FILE", help="also write a page")
    compare.add_argument("--format", choices=("text", "markdown", "csv"), default="text")
    compare.set_defaults(command=_compare)

    weights = commands.add_parser("weights", help="training samples, the least trusted first")
    weights.add_argument("run", metavar="RUN")
    weights.add_argument("--top", type=int, metavar="N", help="only the first N")
    weights.add_argument("--out", metavar="FILE", help=".csv or .parquet; default: the terminal")
    weights.set_defaults(command=_weights)

    report = commands.add_parser("report", help="one HTML file about a run")
    report.add_argument("run", metavar="RUN")
    report.set_defaults(command=_report)

    reproduce = commands.add_parser("reproduce", help="a table of the paper, cell by cell")
    reproduce.add_argument("table", metavar="TABLE", help="table1 to table7, figure2, deeper, ...")
    reproduce.add_argument("--scale", default="cpu", metavar="NAME", help="paper, cpu or smoke")
    reproduce.add_argument("--data", metavar="DIR", help="data sets under fixed names")
    reproduce.add_argument("--out", default="runs/reproduce", metavar="DIR")
    reproduce.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    reproduce.add_argument("--executor", default="processes", metavar="NAME", help="or ray")
    reproduce.add_argument("--seeds", type=int, metavar="N", help="default: the scale's")
    reproduce.add_argument("--results", metavar="FILE.csv", help="only show this file's rows")
    reproduce.add_argument("--format", choices=("text", "markdown"), default="text")
    reproduce.set_defaults(command=_reproduce)

    doctor = commands.add_parser("doctor", help="check a model of yours on one batch")
    doctor.add_argument("--student", required=True, metavar="NAME")
    doctor.add_argument("--internal", metavar="LAYER", help="default: the last linear layer")
    doctor.add_argument("--data", default="digits", metavar="DATA", help="as in train")
    doctor.add_argument("--batch_size", type=int, default=64, metavar="N")
    doctor.add_argument("--window", type=int, default=2, metavar="B")
    doctor.add_argument("--interval", type=int, default=20, metavar="K")
    doctor.set_defaults(command=_doctor)

    bench = commands.add_parser("bench", help="what teaching costs, as ratios to plain training")
    bench.add_argument("--student", default="resnet32", metavar="NAME")
    bench.add_argument("--batch_size", type=int, default=32, metavar="N")
    bench.add_argument("--repeats", type=int, default=5, metavar="N")
    bench.add_argument("--threads", type=int, default=1, metavar="N")
    bench.add_argument("--quick", action="store_true", help="only see that it runs")
    bench.add_argument("--resume", action="store_true", help="go on with the rows of --out")
    bench.add_argument("--methods", action="store_true", help="a step of each method instead")
    bench.add_argument("--out", metavar="FILE.csv", help="default: in results/")
    bench.set_defaults(command=_bench)
    return parser


def _add_settings(group: Any) -> None:
    """A flag for every field of the configuration."""
    model = configuration.Config
    for key in configuration.known_keys():
        owner, _, name = key.rpartition(".")
        field = (configuration.NoiseConfig if owner else model).model_fields[name]
        told = field.description or ""
        if field.default not in (None, ()) and "default" not in told:
            told = f"{told} (default: {_shown(field.default)})".strip()
        group.add_argument(f"--{key}", dest=f"set:{key}", metavar="VALUE", help=told)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The configuration file and the flags as one nested mapping."""
    source = options.config
    if source is None and options.resume:
        saved = Path(getattr(options, "set:out") or "") / "config.yaml"
        source = saved if saved.is_file() else None  # a run goes on as it was begun
    values = configuration.read(source) if source else {}
    for key in configuration.known_keys():
        text = getattr(options, f"set:{key}")
        if text is None:
            continue
        owner, _, name = key.rpartition(".")
        if owner:
            nested = values.get(owner)
            values[owner] = {**(nested if isinstance(nested, dict) else {}), name: text}
        elif key in ("beside", "milestones"):
            values[key] = [part for part in text.split(",") if part]
        else:
            values[key] = None if text in ("none", "null") and name != "kind" else text
    return values


def _train(options: argparse.Namespace) -> int:
    from deepteach.data import noise
    from deepteach.data import readers as sources
    from deepteach.report.compare import method_results, results_table
    from deepteach.report.html import write_report
    from deepteach.runs.reader import open_run
    from deepteach.training.api import run

    values = _settings(options)
    if not values and not options.resume:
        values = {"beside": ["mwn"]}  # the demo shows the best-known rival, too
    config = configuration.make(values)
    if config.out is None:
        if options.resume:
            raise ConfigError("--resume needs --out: name the folder of the run to go on with")
        config = config.model_copy(update={"out": _new_folder(config)})
    console = Console()
    data = sources.load(config.data, config.seed, config.valid_size)
    kind, rate, seed = config.noise.kind, config.noise.rate, config.noise.seed
    data = noise.corrupt(data, kind, rate, config.seed if seed is None else seed)
    for note in data.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)

    def watch(name: str, epochs: int, steps: int) -> AbstractContextManager[Watcher]:
        return watching(console, name, epochs, steps)

    result = run(config, data, resume=options.resume, watch=watch)
    assert result.path is not None
    finished = open_run(result.path)
    console.print(results_table(method_results(finished)).to_rich())
    report = "" if options.no_report else f"   report: {write_report(finished)}"
    console.print(f"run: {result.path}{report}", soft_wrap=True, markup=False)
    return 0


def _unexpected(rest: list[str], command: str) -> str:
    flags = [part for part in rest if part.startswith("--")]
    if flags and command != "train":
        return f"unexpected option {flags[0]!r}; see deepteach {command} --help"
    if not flags:
        return f"unexpected argument {rest[0]!r}; see deepteach --help"
    return configuration.unknown_key(flags[0].removeprefix("--").partition("=")[0])


def _new_folder(config: configuration.Config) -> str:
    base = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.method}-s{config.seed}"
    path, count = Path("runs") / base, 1
    while path.exists():
        count += 1
        path = Path("runs") / f"{base}-{count}"
    return str(path)


def _compare(options: argparse.Namespace) -> int:
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


def _weights(options: argparse.Namespace) -> int:
    from deepteach.report.export import ranked, write
    from deepteach.runs.reader import open_run

    if options.top is not None and options.top < 1:
        raise ConfigError(f"--top must be 1 or more, got {options.top}")
    table = ranked(open_run(options.run).weights, options.top)
    if options.out is None:
        sys.stdout.write(table.csv())
    else:
        write(table, Path(options.out))
    return 0


def _report(options: argparse.Namespace) -> int:
    from deepteach.report.html import write_report
    from deepteach.runs.reader import open_run

    print(write_report(open_run(options.run)))
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    from deepteach.reproduction import launch as executors
    from deepteach.reproduction import runner as reproduce
    from deepteach.reproduction import summary
    from deepteach.reproduction import tables as recipes

    cells = recipes.cells(options.table, options.scale, options.seeds)
    executor = known("executor", options.executor, executors.EXECUTORS)
    if options.jobs < 1:
        raise ConfigError(f"--jobs must be 1 or more, got {options.jobs}")
    out, failures = Path(options.out), []
    if options.results is None:
        table, data = out / f"{options.table}.csv", options.data and Path(options.data)
        # Its page is drawn from the runs themselves: rows are not enough.
        kept = {} if options.table == "figure2" else reproduce.kept_rows(table, cells)
        failures = reproduce.execute(
            [cell for cell in cells if cell.folder not in kept],
            data or None,
            out,
            main,
            jobs=options.jobs,
            executor=executor,
            done=lambda: reproduce.write_csv(reproduce.result_rows(cells, out, kept), table),
        )
        rows = reproduce.result_rows(cells, out, kept)
        if rows:
            reproduce.write_csv(rows, table)
    else:
        table = Path(options.results)
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


def _bench(options: argparse.Namespace) -> int:
    from deepteach.benchmarks.method_cost import measure_methods, method_table
    from deepteach.benchmarks.peers import PEERS
    from deepteach.benchmarks.plan import Plan
    from deepteach.benchmarks.records import append, read_costs, refuse_overwrite
    from deepteach.benchmarks.update_cost import measure_updates, update_table

    path = Path(options.out or f"results/{'costs' if options.methods else 'bench'}.csv")
    going_on = options.resume and path.exists() and not options.methods
    rows = read_costs(path) if going_on else []
    if not going_on:
        refuse_overwrite(path)
    plan = Plan(options.student, options.batch_size, options.repeats, threads=options.threads)
    plan = plan.shortened() if options.quick else plan
    console = Console()
    with console.status("") as status:
        if options.methods:
            found = measure_methods(plan.repeats, status.update)
            for cost in found:
                append(cost, path)
            table = method_table(found, "digits: ratios to plain training")
        else:
            for row in measure_updates(plan, status.update, rows):
                append(row, path)
            rows = read_costs(path)
            title = f"{options.student}, batch {options.batch_size}: ratios to plain training"
            table = update_table(rows, title)
    console.print(table.to_rich())
    for name in PEERS:
        if rows and name not in {row.row for row in rows}:
            console.print(f"{name} is not installed: pip install 'deepteach[bench]'", markup=False)
    console.print(f"written: {path}", soft_wrap=True, markup=False)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from deepteach.data import readers as sources
    from deepteach.training.doctor import examine

    names = ("student", "internal", "data", "batch_size", "window", "interval")
    config = configuration.make({name: getattr(options, name) for name in names})
    for line in examine(config, sources.load(config.data, config.seed)):
        print(line)
    return 0
