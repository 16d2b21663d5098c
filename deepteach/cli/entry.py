"""`main`: the command, its exit code, and errors of one line with their remedy.

A command's file is imported when it is asked for, so that `deepteach --help` waits for
neither torch nor what the other commands need.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn, TextIO

import deepteach
from deepteach.cli.parser import Parser
from deepteach.errors import ConfigError, DeepTeachError
from deepteach.names import hint
from deepteach.training.signals import Interrupted

COMMANDS = {
    "train": "train a student and its teacher",
    "compare": "one table over runs",
    "weights": "training samples, the least trusted first",
    "report": "one HTML file about a run",
    "reproduce": "a table of the paper, cell by cell",
    "doctor": "check a model of yours on one batch",
    "bench": "what teaching costs, as ratios to plain training",
}
"""Each is a file here, with `add(parser)` and `run(options) -> exit code`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; `--debug` anywhere adds tracebacks."""
    _open_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
        return _run([a for a in arguments if a != "--debug"], debug)


def _open_streams() -> None:
    """Streams that take any text: a closed one goes nowhere, others escape."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `>&-`
            setattr(sys, name, open(os.devnull, "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _say(message: object) -> None:
    try:
        print(f"deepteach: {message}", file=sys.stderr, flush=True)
    except BrokenPipeError:  # a warning that nobody reads ends no training
        _send_nowhere(sys.stderr)


def _send_nowhere(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: list[str], debug: bool) -> int:
    try:
        code = _command(arguments)
        sys.stdout.flush()
        return code
    except Interrupted as stop:
        _say(f"{stop}; the state is committed, go on with --resume")
        return stop.code
    except KeyboardInterrupt:
        _say("interrupted by SIGINT")
        return 130
    except DeepTeachError as error:
        if debug:
            traceback.print_exc()
        _say(" ".join(str(error).split()))
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has what it wanted: end as SIGPIPE would, in silence.
        _send_nowhere(sys.stdout)
        return 128 + signal.SIGPIPE
    except OSError as error:
        if debug:
            traceback.print_exc()
        _say(f"{error}: check the path and the disk, then run the command again")
        return 5


def _command(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        return _overview(arguments)
    name, *rest = arguments
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}{hint(name, COMMANDS)}; see deepteach --help")
    command = import_module(f"deepteach.cli.{name}")
    full = "--help-all" in rest
    parser = Parser(prog=f"deepteach {name}", description=command.__doc__, full=full)
    command.add(parser)
    options, unknown = parser.parse_known_args(rest)
    parser.refuse(unknown)
    return command.run(options)


def _overview(arguments: list[str]) -> NoReturn:
    """What `deepteach` says where no command is named."""
    parser = Parser(
        prog="deepteach",
        usage="deepteach COMMAND [OPTIONS]",
        description=(deepteach.__doc__ or "").partition("\n")[0],
        epilog="deepteach COMMAND --help shows the options of a command. "
        "Exit codes: 0 done; 2 configuration, usage or data; 3 checkpoint; 4 numeric failure; "
        "5 disk; 6 another process was lost; 130 and 143 interrupted after a committed checkpoint.",
    )
    parser.add_argument("--version", action="version", version=f"deepteach {deepteach.__version__}")
    parser.add_argument("--debug", action="store_true", help="add the traceback to an error")
    commands = parser.add_argument_group("commands")
    for name, told in COMMANDS.items():
        commands.add_argument(name, nargs="?", help=told)
    parser.parse_args(arguments)
    parser.error("the following arguments are required: COMMAND")
