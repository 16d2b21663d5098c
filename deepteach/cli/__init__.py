"""The command line: `entry` finds the command, and each command is a file."""

from deepteach.cli.entry import main

__all__ = ["main"]
