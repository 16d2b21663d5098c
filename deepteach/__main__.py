"""`python -m deepteach` is the command line; `torchrun -m deepteach` that of several processes."""

import contextlib
import os
import sys

from deepteach.cli import main


def start() -> int:
    """Run the command; of several processes only the first one prints what it has to say.

    Errors are printed by all: who fails alone must say why.
    """
    if os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1":
        return main()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        arguments = sys.argv[1:]
        return main([*arguments, "--no-report"] if arguments[:1] == ["train"] else arguments)


sys.exit(start())
