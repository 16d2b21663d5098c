"""Operations whose second derivative torch lacks, or has wrong, written by others.

Values and first derivatives are torch's own, up to rounding. What is wrong in torch 2.13, in
silence: weight normalisation, whose gradient takes the norms as constants when it is
differentiated again. The tests compare both with differences. Norms have gradient 0 at 0, and so
have these; of that gradient torch says NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

hardsigmoid, embedding_bag = functional.hardsigmoid, functional.embedding_bag
normalize = functional.normalize


def twice_weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`torch._weight_norm`: v g / |v|, the norm over every dimension but `dim`."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def smooth_at_zero(norm: Callable[..., Tensor], order: str) -> Callable[..., Tensor]:
    """`norm`, which calls its kind by `order`: at 0 all its derivatives are 0."""

    def twice(*args: Any, **kwargs: Any) -> Tensor:
        given = {**dict(zip((order, "dim", "keepdim"), args[1:], strict=False)), **kwargs}
        if not args or args[0].layout != torch.strided or given.get("out") is not None:
            return norm(*args, **kwargs)
        with torch.no_grad():
            zero = norm(args[0], **{**given, "keepdim": True}) == 0
        found = norm(torch.where(zero, 1.0, args[0]), **given)
        return torch.where(zero.view(found.shape), 0.0, found)

    return twice


vector_norm = smooth_at_zero(torch.linalg.vector_norm, "ord")


def twice_normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """`torch.nn.functional.normalize`: x / max(|x|, eps)."""
    if out is not None:
        return normalize(input, p, dim, eps, out)
    return input / vector_norm(input, p, dim, True).clamp_min(eps)


def twice_cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """`torch.cosine_similarity`, whose norms are lifted to eps without a derivative of that."""
    x1, x2 = torch.broadcast_tensors(x1, x2)
    lengths = [vector_norm(x, 2, dim, True) for x in (x1, x2)]
    first, second = (size + (size.clamp(min=eps) - size).detach() for size in lengths)
    return (x1 / first * (x2 / second)).sum(dim)


def twice_std(*args: Any, **kwargs: Any) -> Tensor:
    """`torch.std`, whose derivatives are 0 where it is 0."""
    variance = torch.var(*args, **kwargs)
    zero = variance == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, variance).sqrt())


def twice_cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """`torch.cdist`: the distance of each row of x1 to each row of x2."""
    return vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, dim=-1)


def twice_pdist(input: Tensor, p: float = 2) -> Tensor:
    """`torch.nn.functional.pdist`: the distances between the rows."""
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return vector_norm(input[i] - input[j], p, dim=-1)


def twice_hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.hardsigmoid`: relu6(x + 3) / 6."""
    found = functional.hardtanh(input + 3, 0.0, 6.0) / 6
    return input.copy_(found) if inplace else found


def twice_embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """`torch.nn.functional.embedding_bag`: rows looked up, then summed by bag.

    Gradients scaled by frequency are left to torch: they are not those of the value.
    """
    if scale_grad_by_freq:
        return embedding_bag(
            *(input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse),
            *(per_sample_weights, include_last_offset, padding_idx),
        )
    if max_norm is not None:
        with torch.no_grad():
            torch.embedding_renorm_(weight.detach(), input.flatten(), max_norm, norm_type)
    ids = input.flatten()
    if input.dim() == 2:
        count, length = input.shape
        bags = torch.arange(count, device=ids.device).repeat_interleave(length)
    else:
        assert offsets is not None
        starts = offsets[:-1] if include_last_offset else offsets
        count = len(starts)
        places = torch.arange(len(ids), device=ids.device)
        bags = torch.searchsorted(starts, places.to(starts.dtype), right=True) - 1
    kept = torch.ones_like(ids) if padding_idx is None else ids != padding_idx % len(weight)
    kept = kept.to(weight.dtype).unsqueeze(1)
    rows = functional.embedding(ids, weight)
    if mode == "max":
        return _largest(rows, bags, kept > 0, count)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.flatten().unsqueeze(1)
    total = rows.new_zeros(count, rows.shape[1]).index_add(0, bags, rows * kept)
    if mode == "sum":
        return total
    return total / kept.new_zeros(count, 1).index_add(0, bags, kept).clamp(min=1)


def _largest(rows: Tensor, bags: Tensor, kept: Tensor, count: int) -> Tensor:
    """The largest kept entry of each bag and column, `(count, width)`; the first of equal ones."""
    index = bags.unsqueeze(1).expand_as(rows)
    with torch.no_grad():
        top = rows.new_full((count, rows.shape[1]), -torch.inf)
        top.scatter_reduce_(0, index, torch.where(kept, rows, -torch.inf), "amax")
        places = torch.arange(len(rows), device=rows.device).unsqueeze(1).expand_as(rows)
        places = torch.where(kept & (rows == top.gather(0, index)), places, len(rows))
        first = torch.full_like(top, len(rows), dtype=torch.int64)
        first.scatter_reduce_(0, index, places, "amin")
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # an empty bag gives 0
    return padded.gather(0, first)


WRITTEN: dict[Callable, Callable[..., Tensor]] = {
    torch._weight_norm: twice_weight_norm,  # pyright: ignore[reportPrivateImportUsage]
    torch.cdist: twice_cdist,
    torch.pdist: twice_pdist,
    hardsigmoid: twice_hardsigmoid,
    embedding_bag: twice_embedding_bag,
    torch.linalg.vector_norm: vector_norm,
    torch.linalg.norm: smooth_at_zero(torch.linalg.norm, "ord"),
    torch.norm: smooth_at_zero(torch.norm, "p"),
    torch.Tensor.norm: smooth_at_zero(torch.Tensor.norm, "p"),
    normalize: twice_normalize,
    torch.cosine_similarity: twice_cosine_similarity,
    torch.std: twice_std,
    torch.Tensor.std: twice_std,
}


class Corrected(TorchFunctionMode):
    """While it is entered, these operations take the form above."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return WRITTEN.get(func, func)(*args, **(kwargs or {}))
