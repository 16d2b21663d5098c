"""Train a student and its teacher. Settings are flags, or keys of a file."""

from __future__ import annotations

import argparse
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from deepteach.cli.flags import Flags, merged_settings
from deepteach.cli.parser import Parser
from deepteach.errors import ConfigError, DeepTeachError
from deepteach.names import brief, expanded, is_path
from deepteach.training import config as configuration
from deepteach.training.progress import Output, Watcher, watching


def add(parser: Parser) -> None:
    """Add the command's flags."""
    parser.usage = f"{parser.prog} [--config FILE] [--KEY VALUE ...] [--out DIR] [--resume]"
    parser.add_argument("--help-all", action="help", help="show all settings, not only these")
    parser.add_argument("--config", metavar="FILE", help="settings as YAML; flags win over them")
    parser.add_argument("--resume", action="store_true", help="go on in --out")
    parser.add_argument("--no-report", action="store_true", help="write no report.html")
    parser.set_defaults(flags=Flags(parser, full=parser.full))


def run(options: argparse.Namespace) -> int:
    """Train, show a table of the run and those beside it, write the report."""
    from deepteach.data import noise
    from deepteach.data.decisions import decided, decisions_of
    from deepteach.data.readers import load
    from deepteach.report.compare import method_results, results_table
    from deepteach.report.html import write_report
    from deepteach.runs.reader import open_run
    from deepteach.training.api import run

    config = _config(options)
    console = Output()

    def note(text: str) -> None:
        console.print(f"note: {text}", soft_wrap=True, markup=False)

    data = load(
        config.data,
        config.seed,
        config.valid_size,
        group=config.group,
        world=config.world,
        as_given=is_path(config.student),
        image_size=config.image_size,
        workers=config.workers,
        say=note,
        task=config.task,
    )
    kind, rate, seed = config.noise.kind, config.noise.rate, config.noise.seed
    data = noise.corrupt(data, kind, rate, config.seed if seed is None else seed)
    if config.decisions is not None:  # noise is drawn as in the run that was looked at
        data = decided(data, decisions_of(config.decisions))
    for text in data.notes:
        note(text)
    if data.x_test is None:
        note(
            "no test samples, so the table has no test figures: rows whose split is test, or x_test"
        )

    def watch(name: str, epochs: int, steps: int) -> AbstractContextManager[Watcher]:
        return watching(console, name, epochs, steps)

    try:
        result = run(config, data, resume=options.resume, watch=watch)
    except (DeepTeachError, OSError):
        raise
    except Exception as error:
        named = (config.student, config.loss, config.optimizer, config.augment, config.method)
        own = [name for name in named if isinstance(name, str) and is_path(name)]
        if not own:
            raise
        raise ConfigError(
            f"the training failed, probably in {' or '.join(own)} ({brief(error)[:200]}): mend it; "
            "--debug shows where"
        ) from error
    assert result.path is not None
    finished = open_run(result.path)
    console.print(results_table(method_results(finished)).to_rich())
    report = "" if options.no_report else f"   report: {write_report(finished)}"
    console.print(f"run: {result.path}{report}", soft_wrap=True, markup=False)
    return 0


def _config(options: argparse.Namespace) -> configuration.Config:
    """The configuration file, the flags over it, and a folder."""
    given: dict[str, Any] = options.flags.given(options)
    source, out = options.config, given.get("out")
    if source is None and options.resume and out is not None:
        saved = expanded(out) / "config.yaml"
        source = saved if saved.is_file() else None  # a run goes on as it was begun
        if source is None and "data" not in given:
            raise ConfigError(
                f"cannot resume {out}: there is no {saved}: name the folder of a run, or begin one "
                "without --resume"
            )
    values = merged_settings(configuration.read(source) if source else {}, given)
    if not values and not options.resume:
        values = {"beside": ["mwn"]}  # the demo shows the best-known rival, too
    config = configuration.make(values)
    if config.out is None:
        if options.resume:
            raise ConfigError("--resume needs --out: name the folder of the run to go on with")
        config = config.model_copy(update={"out": _new_folder(config)})
    return config


def _new_folder(config: configuration.Config) -> str:
    base = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.method}-s{config.seed}"
    path, count = Path("runs") / base, 1
    while path.exists():
        count += 1
        path = Path("runs") / f"{base}-{count}"
    return str(path)
