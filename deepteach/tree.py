"""Named tensors, `dict[str, Tensor]`, and the few vector operations on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from deepteach.shards import any_shard, anywhere, over_ranks, own

Params = dict[str, Tensor]


def tree_map(function: Callable[..., Tensor], first: Params, *rest: Params) -> Params:
    """Apply `function` entry by entry; all trees carry the names of `first`."""
    return {name: function(leaf, *(tree[name] for tree in rest)) for name, leaf in first.items()}


def clone(tree: Params) -> Params:
    """Detached copies that share no memory with `tree`."""
    return {name: leaf.detach().clone() for name, leaf in tree.items()}


def zeros_like(tree: Params) -> Params:
    """Zeros in the shapes, dtypes and devices of `tree`."""
    return {name: torch.zeros_like(leaf) for name, leaf in tree.items()}


def dot(left: Params, right: Params) -> Tensor:
    """Inner product over all entries, a scalar; differentiable."""
    return torch.stack([(left[name] * right[name]).sum() for name in left]).sum()


def norm(tree: Params) -> float:
    """Euclidean norm over all entries; accumulated in float64 so that it cannot overflow."""
    if any_shard(tree.values()):
        square = norm({name: own(leaf) for name, leaf in tree.items()}) ** 2
        return float(over_ranks(torch.tensor(square, dtype=torch.float64), tree.values())) ** 0.5
    leaves = list(tree.values())
    if not leaves:
        return 0.0
    with torch.no_grad():
        each = list(torch._foreach_norm(leaves))  # pyright: ignore[reportPrivateImportUsage]
        if len({leaf.dtype for leaf in leaves}) > 1:
            each = [leaf.double() for leaf in each]
        return float(torch.linalg.vector_norm(torch.stack(each).double()))


def distance(left: Params, right: Params) -> float:
    """Relative Euclidean distance |left - right| / |right|."""
    return norm(tree_map(torch.sub, left, right)) / max(norm(right), 1e-300)


def cosine(left: Params, right: Params) -> float:
    """Cosine of the angle between two trees; 0 where either vanishes."""
    scale = norm(left) * norm(right)
    return float(dot(left, right)) / scale if scale > 0 else 0.0


def norms(leaves: list[Tensor]) -> list[Tensor]:
    """The Euclidean norm of each, in float32 at least; of one device and without a graph.

    Of what is split over ranks, that of this rank's part.
    """
    if not leaves:
        return []
    if any_shard(leaves):
        leaves = [own(leaf) for leaf in leaves]
    short = any(leaf.dtype.itemsize < 4 for leaf in leaves)
    with torch.no_grad():
        return list(torch._foreach_norm(leaves, 2, torch.float32 if short else None))  # pyright: ignore[reportPrivateImportUsage]


def all_finite(leaves: Iterable[Tensor]) -> bool:
    """Whether no entry is NaN or infinite; one synchronisation for all tensors."""
    leaves = list(leaves)
    if any_shard(leaves):
        return not anywhere(not all_finite(map(own, leaves)), leaves)
    # Finite norms rule both out, and are one fused pass; they may overflow, though.
    if leaves and finite_sum(torch.stack(norms(leaves))):
        return True
    flags = [torch.isfinite(leaf).all() for leaf in leaves]
    return bool(torch.stack(flags).all()) if flags else True


TF32_SLACK = 0.03
"""How well a pass repeats its gradients, relatively, where products are of TF32's 10 bits.

Other kernels, and so other rounding, serve the passes with and without derivatives. Measured on
an H200: ResNet-8 off by up to 0.7 % of the gradient's norm.
"""


def repeat_slack(leaves: Iterable[Tensor]) -> float:
    """How far a pass may be from its first one for the arithmetic's sake; 0 but with TF32.

    float32 on CUDA devices where torch may round products to TF32, as it does for convolutions
    unless `torch.backends.cudnn.allow_tf32 = False`.
    """
    on_cuda = any(leaf.is_cuda and leaf.dtype == torch.float32 for leaf in leaves)
    return TF32_SLACK if on_cuda and _tf32_allowed() else 0.0


def _tf32_allowed() -> bool:
    """Of convolutions, recurrent layers or products of matrices; "none" asks the wider setting."""
    backends: Any = torch.backends  # torch's stubs know no fp32_precision of all of them
    cudnn, overall = backends.cudnn, backends.fp32_precision
    wider = overall if cudnn.fp32_precision == "none" else cudnn.fp32_precision
    pairs = [
        (cudnn.conv.fp32_precision, wider),
        (cudnn.rnn.fp32_precision, wider),
        (backends.cuda.matmul.fp32_precision, overall),
    ]
    return any("tf32" == (outer if own == "none" else own) for own, outer in pairs)


def finite_sum(leaf: Tensor) -> bool:
    """Whether the sum of the entries is finite: then all are, but they may be where it is not."""
    leaf = leaf.detach() if leaf.requires_grad else leaf
    return math.isfinite((leaf.sum() if leaf.dim() else leaf).item())


def first_apart(left: Params, right: Params) -> str | None:
    """A name of `left` under which the bits differ; one synchronisation for all."""
    if not left:
        return None
    apart = torch.stack([(own(leaf) != own(right[name])).any() for name, leaf in left.items()])
    flags = over_ranks(apart.int(), left.values()).tolist()
    return next((name for name, flag in zip(left, flags, strict=True) if flag), None)


def dense_parts(leaf: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor consists of: itself, or places and values of a sparse one."""
    if leaf.layout == torch.strided:
        return [leaf]
    if leaf.layout == torch.sparse_coo:
        leaf = leaf.coalesce()
        return [leaf.indices(), leaf.values()]
    if leaf.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [leaf.crow_indices(), leaf.col_indices(), leaf.values()]
    return [leaf.ccol_indices(), leaf.row_indices(), leaf.values()]
