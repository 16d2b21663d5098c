"""Second derivatives of batch normalisation and convolution by hand, against torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from deepteach.core.derivatives.double_backward import TwiceDifferentiable
from deepteach.errors import ConfigError

SHAPES = [(6, 3), (4, 3, 5), (4, 3, 2, 3), (2, 3, 2, 2, 2)]


def layer(shape: tuple[int, ...], **settings: object) -> nn.Module:
    kinds: dict[int, Callable[..., nn.Module]] = {
        2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d
    }  # fmt: skip
    made = kinds[len(shape)](shape[1], **settings).double()
    for leaf in made.parameters():
        nn.init.normal_(leaf)
    return made


def everything(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Values, first derivatives, and the second derivatives along a fixed direction."""
    leaves = [x, *module.parameters()]
    y = module(x)
    # Not linear in y, so that gy depends on x as well.
    first = torch.autograd.grad((y.sin() * y).sum(), leaves, create_graph=True)
    g = torch.Generator().manual_seed(1)
    along = [torch.randn(leaf.shape, generator=g, dtype=x.dtype) for leaf in first]
    inner = sum((a * b).sum() for a, b in zip(first, along, strict=True))
    return [y, *first, *torch.autograd.grad(inner, leaves)]  # type: ignore[arg-type]


def compare(module: nn.Module, x: Tensor, *, equal: int = 0) -> None:
    """All derivatives are torch's; the first `equal` of them bit for bit."""
    theirs = everything(module, x)
    with TwiceDifferentiable():
        ours = everything(module, x)
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
        assert number >= equal or torch.equal(a, b)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{}, {"track_running_stats": False}, {"eps": 0.3}])
def test_all_derivatives_are_torch_s(shape: tuple[int, ...], settings: dict) -> None:
    module = layer(shape, **settings)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    compare(module, x, equal=2)


def test_finite_differences() -> None:
    module = layer((4, 3, 2, 3))
    x = torch.randn(4, 3, 2, 3, dtype=torch.float64, requires_grad=True)

    def value(x: Tensor, *leaves: Tensor) -> Tensor:
        with TwiceDifferentiable():
            return nn.functional.batch_norm(x, None, None, *leaves, training=True).sin()

    assert torch.autograd.gradgradcheck(value, (x, *module.parameters()))


@pytest.mark.parametrize("settings", [{}, {"momentum": None}, {"momentum": 0.4}])
def test_running_statistics_move_as_in_torch(settings: dict) -> None:
    one, other = layer((4, 3, 5), **settings), layer((4, 3, 5), **settings)
    other.load_state_dict(one.state_dict())
    for _ in range(3):
        x = torch.randn(4, 3, 5, dtype=torch.float64)
        one(x)
        with TwiceDifferentiable():
            other(x)
    for name, leaf in one.named_buffers():
        assert torch.equal(leaf, other.get_buffer(name))


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_weight_may_be_zero_or_negative(scale: float) -> None:
    module = layer((4, 3, 2, 3))
    with torch.no_grad():
        module.weight.fill_(scale)  # type: ignore[union-attr, operator]
    x = torch.randn(4, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    compare(module, x)


def test_channels_last() -> None:
    module = layer((4, 3, 2, 3))
    x = torch.randn(4, 3, 2, 3, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    compare(module, x)


@pytest.mark.parametrize("change", ["eval", "no weights", "half precision"])
def test_other_forms_are_left_to_torch(change: str) -> None:
    module = layer((4, 3, 5), affine=change != "no weights")
    module.train(change != "eval")
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    if change == "half precision":
        module, x = module.bfloat16(), x.detach().bfloat16().requires_grad_()
    with TwiceDifferentiable():
        y = module(x)
    assert y.grad_fn is not None and "_Norm" not in y.grad_fn.name()


def test_a_batch_of_one_value_is_refused_as_by_torch() -> None:
    with TwiceDifferentiable(), pytest.raises(ValueError, match="more than 1 value"):
        layer((1, 3))(torch.randn(1, 3, dtype=torch.float64))


CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3), (2, 4, 7)),
    (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 4)),
    (nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), groups=2), (2, 4, 6, 7)),
    (nn.Conv2d(4, 4, 1, stride=2, bias=False), (2, 4, 5, 5)),
    (nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 3)),
    (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 5)),  # left to torch
    (nn.Conv2d(4, 6, 3, padding_mode="circular", padding=1), (2, 4, 5, 5)),
]


@pytest.mark.parametrize(("module", "shape"), CONVOLUTIONS)
def test_convolutions(module: nn.Module, shape: tuple[int, ...]) -> None:
    module = module.double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    compare(module, x, equal=3)


@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_a_convolution_of_data_and_one_leaf(leaf: str) -> None:
    """The input, or one of the parameters, may need no gradient."""
    module = nn.Conv2d(2, 3, 2).double()
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64)

    def second() -> Tensor:
        y = module(x)
        chosen = module.get_parameter(leaf)
        (first,) = torch.autograd.grad((y.sin() * y).sum(), chosen, create_graph=True)
        return torch.autograd.grad(first.square().sum(), chosen)[0]

    theirs = second()
    with TwiceDifferentiable():
        torch.testing.assert_close(second(), theirs, rtol=1e-9, atol=1e-10)


def test_a_third_derivative() -> None:
    """That of a forward that takes gradients itself: torch's own, or refused."""
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)

    def third(module: nn.Module) -> Tensor:
        (first,) = torch.autograd.grad((module(x).sin() ** 2).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        leaves = (x, *module.parameters())
        found = torch.autograd.grad(second.sin().sum(), leaves)
        return torch.cat([leaf.flatten() for leaf in found])

    convolution = nn.Conv1d(3, 2, 2).double()
    theirs = third(convolution)
    with TwiceDifferentiable():
        torch.testing.assert_close(third(convolution), theirs, rtol=1e-9, atol=1e-10)
        with pytest.raises(ConfigError, match="third derivative"):
            third(layer((4, 3, 5)))


@pytest.mark.parametrize("kind", ["norm", "convolution"])
def test_forward_mode_raises(kind: str) -> None:
    module = layer((4, 3, 5)) if kind == "norm" else nn.Conv1d(3, 2, 2).double()
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    with TwiceDifferentiable():
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward"):
            module(forward_ad.make_dual(x.detach(), torch.ones_like(x)))
