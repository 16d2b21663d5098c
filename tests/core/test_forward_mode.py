"""What torch says when it loads its forward mode is not passed on to users."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import warnings
import torch
warnings.simplefilter("error")
from deepteach.core.forward_mode import along
theta, ones = {"x": torch.randn(4, 3)}, {"x": torch.ones(4, 3)}
[(_, slope)] = along(lambda p: (torch.nn.functional.log_softmax(p["x"], 1),), theta, ones)
assert slope.abs().max() < 1e-6
[(_, slope)] = along(lambda p: (torch.nn.functional.logsigmoid(p["x"]),), theta, ones)
assert torch.allclose(slope, torch.sigmoid(-theta["x"]))
"""


def test_no_warning_of_torch_s_own_scripts() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
