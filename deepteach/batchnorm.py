"""Batch normalisation that is cheap to differentiate twice.

torch derives the second derivative of batch normalisation operation by operation, in some
fifty passes over each feature map: a third of a meta-gradient's time. Written out by hand it
takes ten, most of them in the kernel of the first derivative.

With the statistics of a channel over its N values, r = 1 / sqrt(var + eps), x^ = (x - mean) r and
m(.) its mean: y = gamma x^ + beta, and the first derivative is

    gx = gamma r P(gy),  ggamma = N m(gy x^),  gbeta = N m(gy),   P(z) = z - m(z) - x^ m(z x^).

Differentiating <vx, gx> + <vgamma, ggamma> + <vbeta, gbeta> once more, with dx^ = r P(dx) and
dr = -r^2 m(x^ dx), gives what `_Backward.backward` returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

ALL = [True, True, True]


class TwiceDifferentiable(TorchFunctionMode):
    """While it is entered, normalisation by the statistics of the batch takes the form below.

    The values are those of torch, bit for bit on the CPU; running statistics move as usual.
    Third derivatives, and forward mode, raise.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is batch_norm:
            return _normalise(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


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
    if not training or weight is None or bias is None or input.numel() == input.shape[1]:
        return batch_norm(input, *statistics, weight, bias, training, momentum, eps)
    return _Forward.apply(input, weight, bias, *statistics, momentum, eps)  # type: ignore[no-any-return]


class _Forward(Function):
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
        gx, g_weight, g_bias = _Backward.apply(gy, x, weight, mean, rate, ctx.eps)  # type: ignore[misc]
        return gx, g_weight, g_bias, None, None, None, None


class _Backward(Function):
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
        if torch.is_grad_enabled():  # grad() would pass a mark of once_differentiable by
            raise NotImplementedError("batch normalisation is differentiated twice, not thrice")
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
