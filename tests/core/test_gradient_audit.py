"""Were gradients written to, or changed? Asked of the audit itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deepteach.core.checks.gradient_audit import GradientAudit
from deepteach.errors import ConfigError


def stepped(written: dict[str, Tensor], again: dict[str, Tensor]) -> None:
    """A step on gradients that something has written to, unchanged, since they arrived."""
    audit = GradientAudit(scaled=False, changed=False)
    active = {name: nn.Parameter(torch.zeros_like(grad)) for name, grad in written.items()}
    audit.hooks.arrange({**active})
    for name, leaf in active.items():
        leaf.grad = written[name].clone()
        audit.at_accumulation(name, leaf)
        leaf.grad.mul_(1.0)
    audit.at_step({**active}, lambda: again)


def test_what_is_0_but_for_rounding_is_not_compared() -> None:
    """The bias of an attention's keys moves nothing: its gradient is rounding, new each time."""
    weight = torch.ones(3)
    stepped({"weight": weight, "bias": torch.tensor([1e-8, 0.0])},
            {"weight": weight, "bias": torch.tensor([-1e-8, 3e-8])})  # fmt: skip


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_what_is_more_than_rounding_is(size: float) -> None:
    weight = torch.ones(3)
    with pytest.raises(ConfigError, match="the gradient of 'bias' was changed"):
        stepped({"weight": weight, "bias": torch.tensor([size])},
                {"weight": weight, "bias": torch.tensor([1.1 * size])})  # fmt: skip
