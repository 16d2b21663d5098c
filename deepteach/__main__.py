"""`python -m deepteach` is the command line."""

import sys

from deepteach.cli import main

sys.exit(main())
