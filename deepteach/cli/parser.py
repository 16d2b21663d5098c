"""What all commands share: a parser whose errors are one line, and the check of counts."""

from __future__ import annotations

import argparse
import shutil
from typing import Any, NoReturn

from deepteach.errors import ConfigError
from deepteach.names import hint

NARROWEST, WIDEST = 80, 100
"""Columns of a help text, whatever the terminal."""


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size().columns
        width = min(max(columns, NARROWEST), WIDEST) - 2
        super().__init__(prog, max_help_position=30, width=width)


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are ConfigErrors and whose flags are written in full."""

    def __init__(self, *, full: bool = False, **options: Any) -> None:
        self.full = full
        """Its help shows all flags, not only the common ones."""
        self.flags: list[str] = []
        """The flags' names, without dashes."""
        self.says_keys = False
        """The flags are keys of the configuration, and errors call them so."""
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """As argparse's; the flag is remembered for the hints of `refuse`."""
        self.flags += [name.removeprefix("--") for name in names if name.startswith("--")]
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of leaving the process."""
        raise ConfigError(f"{message}; see {self.prog} --help")

    def refuse(self, rest: list[str]) -> None:
        """Refuse what parsing has left over, with the nearest flag."""
        if not rest:
            return
        given = next((part for part in rest if part.startswith("--")), None)
        if given is None:
            self.error(f"unexpected argument {rest[0]!r}")
        option = given.partition("=")[0]
        key = option.removeprefix("--")
        what = f"unknown key {key!r}" if self.says_keys else f"unexpected option {option!r}"
        self.error(f"{what}{hint(key, self.flags)}")


def refuse_below_one(options: argparse.Namespace, *flags: str) -> None:
    """Raise ConfigError where one of these counts is given and is not 1 or more."""
    for flag in flags:
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise ConfigError(f"--{flag} must be 1 or more, got {value}")
