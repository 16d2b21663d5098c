"""Check one batch of a model of yours: derivatives, replay, what a teacher update costs."""

from __future__ import annotations

import argparse

from deepteach.cli.flags import Flags
from deepteach.cli.parser import Parser
from deepteach.errors import ConfigError
from deepteach.names import is_path
from deepteach.training import config as configuration

SETTINGS = ("data", "task", "group", "student", "internal", "interval", "window", "batch_size")


def add(parser: Parser) -> None:
    """Add the command's flags, which are some settings of a run."""
    parser.usage = f"{parser.prog} --student NAME [--KEY VALUE ...]"
    parser.set_defaults(flags=Flags(parser, full=True, only=SETTINGS))


def run(options: argparse.Namespace) -> int:
    """Print the findings, a line each."""
    from deepteach.data.readers import load
    from deepteach.training.doctor import examine

    given = options.flags.given(options)
    if "student" not in given:
        raise ConfigError("doctor needs --student: name a model; see deepteach doctor --help")
    config = configuration.make({"data": "digits", **given})
    own = is_path(config.student)
    more = {"image_size": config.image_size, "task": config.task}
    data = load(config.data, config.seed, group=config.group, as_given=own, **more)
    for line in examine(config, data):
        print(line)
    return 0
