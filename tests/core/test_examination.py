"""Black-box differences are asked so that the kinks of many units raise no false alarm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deepteach.core.checks.examination import Findings, _Examination
from deepteach.tree import Params


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return -grad


def asked(seed: int, size: float, reverses: bool = False) -> _Examination:
    """Losses with two hundred kinks within `size` of theta, relative to it."""
    draw = torch.Generator().manual_seed(seed)
    theta = {"w": torch.randn(200, generator=draw).double()}
    kinks = size * torch.randn(4, 200, generator=draw).double()
    slopes = torch.randn(4, 200, generator=draw).double()

    def losses(at: Params) -> Tensor:
        w = Reversed.apply(at["w"]) if reverses else at["w"]
        assert isinstance(w, Tensor)
        return (slopes * (w - theta["w"] * (1 + kinks)).relu()).sum(1) + w.square().sum()

    return _Examination(losses, theta)


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("seed", range(25))
def test_kinks_are_no_changed_gradients(seed: int, size: float) -> None:
    assert asked(seed, size).true()


@pytest.mark.parametrize("distance", [3e-3, 5e-4, 5e-5, 5e-6, 2e-6])
def test_one_kink_close_by_is_no_changed_gradient(distance: float) -> None:
    """All differences but the shortest may step over it, and agree with each other."""
    examined = asked(0, 1e-2)
    start, along = examined.theta["w"], examined.along["w"]

    def kinked(theta: Params) -> Tensor:
        gone = (theta["w"] - start) @ along / along.square().sum()
        return (gone + (gone - distance).relu()).expand(4)

    examined.losses = kinked
    examined.base = kinked(examined.theta) + 1
    assert examined.true()


@pytest.mark.parametrize("seed", range(25))
def test_changed_gradients_are_found_among_kinks(seed: int) -> None:
    assert not asked(seed, 1e-2, reverses=True).true()


@pytest.mark.parametrize("derivative", ["either", "reverse", "second", "differences"])
@pytest.mark.parametrize("gap", [20.0, 30.0, 35.0, 40.0, 100.0, 700.0])
def test_samples_that_are_fitted_to_the_last_digit_raise_no_alarm(
    gap: float, derivative: str
) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, generator=draw).double()
    theta = {"w": torch.randn(3, 3, generator=draw).double()}
    labels = torch.tensor([0, 1, 2, 0])
    fitted = gap * torch.nn.functional.one_hot(labels, 3)

    def losses(at: Params) -> Tensor:
        logits = x @ at["w"] + fitted
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    assert _Examination(losses, theta).findings(derivative) == Findings()
