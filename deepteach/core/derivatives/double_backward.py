"""Operations that are cheap to differentiate twice: batch normalisation and convolution.

torch derives the second derivative of batch normalisation operation by operation, in some
fifty passes over each feature map. Written out by hand it takes ten, most of them in the
kernel of the first derivative. With the statistics of a channel over its N values,
r = 1 / sqrt(var + eps), x^ = (x - mean) r and m(.) a mean: y = gamma x^ + beta, and

    gx = gamma r P(gy),  ggamma = N m(gy x^),  gbeta = N m(gy),   P(z) = z - m(z) - x^ m(z x^).

Differentiating <vx, gx> + <vgamma, ggamma> + <vbeta, gbeta> once more, with dx^ = r P(dx) and
dr = -r^2 m(x^ dx), gives what `_NormBackward.backward` returns.

A convolution y = x * w is bilinear, so its second derivative takes the kernels of the first.
torch computes one of them, the weight's, as a convolution by a filter as large as the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import batch_norm

from deepteach.core.derivatives.second_derivatives import Corrected
from deepteach.errors import ConfigError

ALL = [True, True, True]
CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


class TwiceDifferentiable(Corrected):
    """While it is entered, these operations are as below, others as in `second_derivatives`.

    Values and first derivatives come from torch's own kernels; running statistics move as
    usual. Forward mode raises, and so do third derivatives of batch normalisation.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is batch_norm:
            return _normalise(*args, **(kwargs or {}))
        if func in CONVOLUTIONS:
            return _convolve(func, *args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def _normalise(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`, with its names."""
    statistics = (running_mean, running_var)
    known = weight is not None and bias is not None and input.dtype == weight.dtype
    full = input.dtype in (torch.float32, torch.float64)  # half precision mixes types inside
    if not (training and known and full) or input.numel() == input.shape[1]:
        return batch_norm(input, *statistics, weight, bias, training, momentum, eps)
    return _Norm.apply(input, weight, bias, *statistics, momentum, eps)  # type: ignore[no-any-return]


def _refuse_third() -> None:
    """`torch.autograd.grad` would pass a mark of `once_differentiable` by."""
    if torch.is_grad_enabled():
        raise ConfigError(
            "the student's forward takes gradients itself through a batch normalisation in train "
            "mode, whose third derivative is not known: put that layer into eval mode"
        )


class _Norm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        out, mean, rate = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(x, weight, mean, rate)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:  # type: ignore[override]
        x, weight, mean, rate = ctx.saved_tensors
        gx, g_weight, g_bias = _NormBackward.apply(gy, x, weight, mean, rate, ctx.eps)  # type: ignore[misc]
        return gx, g_weight, g_bias, None, None, None, None


class _NormBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rate: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = _first(gy, x, weight, mean, rate, eps)
        ctx.save_for_backward(gy, x, weight, mean, rate, found[1], found[2])
        ctx.eps = eps
        return found

    @staticmethod
    def backward(ctx: Any, vx: Tensor, v_weight: Tensor, v_bias: Tensor) -> Any:  # type: ignore[override]
        _refuse_third()
        gy, x, weight, mean, rate, g_weight, g_bias = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        # The kernel of the first derivative at vx: gamma r P(vx), N m(vx x^), N m(vx).
        d_gy, sum_vxh, sum_v = _first(vx, x, weight, mean, rate, ctx.eps)
        p, q = sum_vxh / count, g_weight / count  # m(vx x^), m(gy x^)
        shape = (1, -1, *(1 for _ in range(x.dim() - 2)))
        others = [0, *range(2, x.dim())]
        s = (vx * gy).sum(others) / count - sum_v * g_bias / count**2 - p * q  # m(vx P(gy))

        def affine(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
            (first, by), *more = terms
            total = torch.addcmul(constant.view(shape), first, by.view(shape))
            for leaf, slope in more:
                total.addcmul_(leaf, slope.view(shape))
            return total

        # vgamma x^ + vbeta, with x^ = r x - r mean
        d_gy += affine(v_bias - v_weight * rate * mean, (x, v_weight * rate))
        of_gy, of_vx = v_weight - weight * rate * p, -weight * rate * q
        mean_h = of_gy * g_bias / count + of_vx * sum_v / count
        of_xh = -(of_gy * q + of_vx * p) - weight * rate * s
        d_x = affine(
            -rate * (mean_h + of_xh * rate * mean),
            (gy, rate * of_gy),
            (vx, rate * of_vx),
            (x, rate * of_xh * rate),
        )
        return d_gy, d_x, rate * count * s, None, None, None


def _first(
    gy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rate: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """gamma r P(gy), the sums of gy x^ and of gy per channel: one fused kernel."""
    return torch.ops.aten.native_batch_norm_backward(
        gy, x, weight, None, None, mean, rate, True, eps, ALL
    )


class _Shape(NamedTuple):
    """How a convolution moves over its input."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.ops.aten.convolution(
            x, weight, bias, *self[:3], False, [0] * len(self.stride), self.groups
        )

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, *wanted: bool) -> list[Tensor | None]:
        """Gradients of x, the weight and the bias, as far as they are wanted."""
        sizes = [weight.shape[0]] if wanted[2] else None
        return torch.ops.aten.convolution_backward(
            *(gy, x, weight, sizes, *self[:3], False, [0] * len(self.stride), self.groups, wanted)
        )


def _convolve(
    func: Callable,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv2d` and its like, with their names."""
    if isinstance(padding, str) or input.dim() != weight.dim():
        return func(input, weight, bias, stride, padding, dilation, groups)
    count = weight.dim() - 2
    moves = [[m] * count if isinstance(m, int) else list(m) for m in (stride, padding, dilation)]
    return _Conv.apply(input, weight, bias, _Shape(*moves, groups))  # type: ignore[no-any-return]


class _Conv(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: _Shape) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape = shape
        return shape.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:  # type: ignore[override]
        found = _ConvBackward.apply(gy, *ctx.saved_tensors, ctx.shape, ctx.needs_input_grad[:3])
        return *found, None  # type: ignore[misc]


class _ConvBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, x: Tensor, weight: Tensor, shape: _Shape, wanted: tuple[bool, ...]
    ) -> Any:
        ctx.save_for_backward(gy, x, weight)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        return tuple(shape.backward(gy, x, weight, *wanted))

    @staticmethod
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> Any:  # type: ignore[override]
        # Operations of torch alone, so that a third derivative is theirs.
        gy, x, weight = ctx.saved_tensors
        shape: _Shape = ctx.shape
        d_gy = d_x = d_weight = None
        if vw is not None:
            d_gy = shape.forward(x, vw, vb)
            if ctx.needs_input_grad[1]:
                d_x = shape.backward(gy, x, vw, True, False, False)[0]
        elif vb is not None:
            d_gy = vb.view(1, -1, *(1 for _ in shape.stride)).expand_as(gy)
        if vx is not None:
            along = shape.forward(vx, weight)
            d_gy = along if d_gy is None else d_gy + along
            d_weight = shape.backward(gy, vx, weight, False, True, False)[1]
        return d_gy, d_x, d_weight, None, None
