"""What the names of optimizers make, from the settings of a run."""

from __future__ import annotations

import pytest
import torch

from deepteach.core.adjoint.fixed_point import ExactSGD
from deepteach.training.optimizers import OPTIMIZERS

KINDS = {
    "sgd": torch.optim.SGD,
    "nesterov": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "exact-sgd": ExactSGD,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_setting_is_without_effect(name: str) -> None:
    leaves = [torch.nn.Parameter(torch.ones(2))]
    made = OPTIMIZERS[name](leaves, lr=0.25, momentum=0.5, weight_decay=0.125)
    (group,) = made.param_groups
    assert type(made) is KINDS[name] and group["params"] == leaves
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.125)
    assert group["momentum"] == 0.5 if "momentum" in group else group["betas"][0] == 0.5
    assert group.get("nesterov", False) == (name == "nesterov")
