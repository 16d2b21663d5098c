"""Which derivative modes of torch are right through normalisation layers.

The engine uses double backward and first-order forward mode only. Reverse-over-forward is
silently wrong through some layers; the day torch repairs that, a test here says so.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

Params = dict[str, Tensor]
Value = Callable[[Params], Tensor]

NORMS: dict[str, Callable[[], nn.Module]] = {
    "batchnorm": lambda: nn.BatchNorm2d(2),
    "batchnorm without statistics": lambda: nn.BatchNorm2d(2, track_running_stats=False),
    "batchnorm eval": lambda: nn.BatchNorm2d(2).eval(),
    "groupnorm": lambda: nn.GroupNorm(2, 2),
    "layernorm": lambda: nn.LayerNorm(3),
    "instancenorm": lambda: nn.InstanceNorm2d(2, affine=True),
    "none": nn.Identity,
}
WRONG = ["batchnorm", "batchnorm without statistics", "layernorm", "instancenorm"]
RIGHT = [name for name in NORMS if name not in WRONG]


def problem(norm: str) -> tuple[Value, Params, Params]:
    """A conv-norm-tanh-pool-linear loss, its parameters, and a direction."""
    module = nn.Sequential(
        *(nn.Conv2d(1, 2, 2), NORMS[norm](), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(2, 3)),
    ).double()
    x, y = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])

    def value(theta: Params) -> Tensor:
        # Copied inside, so that no transform sees a captured buffer change.
        buffers = {name: leaf.clone() for name, leaf in module.named_buffers()}
        logits = functional_call(module, {**theta, **buffers}, (x,))
        return nn.functional.cross_entropy(logits, y)

    theta = {name: leaf.detach().clone() for name, leaf in module.named_parameters()}
    along = {name: torch.randn_like(leaf) for name, leaf in theta.items()}
    return value, theta, along


def shifted(theta: Params, along: Params, h: float) -> Params:
    return {name: leaf + h * along[name] for name, leaf in theta.items()}


def gradient(value: Value, theta: Params) -> Params:
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in theta.items()}
    found = torch.autograd.grad(value(leaves), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def by_differences(value: Value, theta: Params, along: Params, h: float = 1e-5) -> Params:
    high = gradient(value, shifted(theta, along, h))
    low = gradient(value, shifted(theta, along, -h))
    return {name: (high[name] - low[name]) / (2 * h) for name in theta}


def by_double_backward(value: Value, theta: Params, along: Params) -> Params:
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in theta.items()}
    g = torch.autograd.grad(value(leaves), list(leaves.values()), create_graph=True)
    slope = torch.stack([(a * b).sum() for a, b in zip(g, along.values(), strict=True)]).sum()
    found = torch.autograd.grad(slope, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return {name: torch.zeros_like(leaf) if f is None else f for (name, leaf), f in pairs}


def by_forward_over_reverse(value: Value, theta: Params, along: Params) -> Params:
    return torch.func.jvp(torch.func.grad(value), (theta,), (along,))[1]


def by_reverse_over_forward(value: Value, theta: Params, along: Params) -> Params:
    return torch.func.grad(lambda t: torch.func.jvp(value, (t,), (along,))[1])(theta)


def error(got: Params, want: Params) -> float:
    gap = sum(float((got[name] - want[name]).square().sum()) for name in want)
    return (gap / sum(float(leaf.square().sum()) for leaf in want.values())) ** 0.5


@pytest.mark.parametrize("mode", [by_double_backward, by_forward_over_reverse])
@pytest.mark.parametrize("norm", NORMS)
def test_right_modes_equal_finite_differences(norm: str, mode: Callable) -> None:
    value, theta, along = problem(norm)
    assert error(mode(value, theta, along), by_differences(value, theta, along)) < 1e-6


@pytest.mark.parametrize("norm", WRONG)
def test_reverse_over_forward_is_wrong(norm: str) -> None:
    value, theta, along = problem(norm)
    want = by_differences(value, theta, along)
    found = error(by_reverse_over_forward(value, theta, along), want)
    assert found > 1e-2, (
        f"torch {torch.__version__} now differentiates forward mode through {norm} correctly "
        f"(error {found:.0e}): move it to RIGHT and say so in docs/design.md"
    )


@pytest.mark.parametrize("norm", RIGHT)
def test_reverse_over_forward_is_right_elsewhere(norm: str) -> None:
    value, theta, along = problem(norm)
    want = by_differences(value, theta, along)
    assert error(by_reverse_over_forward(value, theta, along), want) < 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_first_order_forward_mode_is_right(norm: str) -> None:
    value, theta, along = problem(norm)
    slope = torch.func.jvp(value, (theta,), (along,))[1]
    want = (value(shifted(theta, along, 1e-5)) - value(shifted(theta, along, -1e-5))) / 2e-5
    assert float(slope) == pytest.approx(float(want), rel=1e-6, abs=1e-9)
