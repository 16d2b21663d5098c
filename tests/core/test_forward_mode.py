"""Forward mode loads no more of torch than a student needs, and what torch says then stays here."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import warnings
import torch
warnings.simplefilter("error")
from deepteach.core.derivatives.forward_mode import along
theta, ones = {"x": torch.randn(4, 3)}, {"x": torch.ones(4, 3)}
[(_, slope)] = along(lambda p: (torch.nn.functional.log_softmax(p["x"], 1),), theta, ones)
assert slope.abs().max() < 1e-6
assert "torch._decomp.decompositions_for_jvp" not in sys.modules  # a tenth of a second
[(_, slope)] = along(lambda p: (torch.nn.functional.logsigmoid(p["x"]),), theta, ones)
assert torch.allclose(slope, torch.sigmoid(-theta["x"]))
"""


def test_no_rules_are_loaded_that_torch_has_and_none_with_a_warning() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
