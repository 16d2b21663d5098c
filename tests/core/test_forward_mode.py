"""What torch says when it loads its forward mode is not passed on to users."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import warnings
import torch
warnings.simplefilter("error")
from torch.autograd import forward_ad
from deepteach.core.forward_mode import dual_level
x = torch.randn(4, 3)
with dual_level():
    out = torch.nn.functional.log_softmax(forward_ad.make_dual(x, torch.ones(4, 3)), 1)
    assert forward_ad.unpack_dual(out).tangent.abs().max() < 1e-6
    assert not torch.is_grad_enabled()
"""


def test_no_warning_of_torch_s_own_scripts() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
