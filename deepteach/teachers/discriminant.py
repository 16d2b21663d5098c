"""Shrunk linear discriminant analysis, at a cost that follows the number of samples.

Symbols: n samples, d = n - classes with a sample, X the `(n, width)` states less the mean of
their class, M the class means; s shrinkage, a = s mean(diag S), b = (1 - s) / d, where
S = X^T X / d. The shrunk covariance is C = a I + b X^T X.
"""

from __future__ import annotations

import torch
from torch import Tensor


def discriminant(
    states: Tensor, labels: Tensor, classes: int, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Scores are `states @ slope + offset[present]`, slope = C^-1 M^T.

    Args:
        states: `(n, width)`, in the precision to compute in.
        labels: `(n,)` class indices.
        classes: how many there are, with samples or without.
        shrinkage: s, in (0, 1]; 0 needs more samples than columns.

    Returns:
        slope `(width, present)`: a column for each class that has a sample, in their order;
        offset `(classes,)`: -inf where a class has none, so that finite offsets say which do.
    """
    present, own = labels.unique(return_inverse=True)
    slope, offsets = of_members(states, own, members(own, len(present), states), shrinkage)
    offset = states.new_full((classes,), -torch.inf)
    offset[present] = offsets
    return slope, offset


def members(own: Tensor, count: int, like: Tensor) -> Tensor:
    """`(n, count)` 1 where a sample is of a class, in the precision of `like`."""
    return (own.unsqueeze(1) == torch.arange(count, device=own.device)).to(like.dtype)


def of_members(
    states: Tensor, own: Tensor, member: Tensor, shrinkage: float, among: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(slope `(width, classes)`, offset `(classes,)`) of classes that all have a sample.

    `member` as `members` says of `own`. `among` `(parts, n)` bool asks for a discriminant of each
    part of the samples, all at once; every class has a sample in every part. Rows of 0 stand for
    the others, which leave each sum, and each solution, as it is without them.
    """
    inside = None if among is None else among.to(states.dtype)
    counts = member.sum(0) if inside is None else inside @ member
    within = states if inside is None else states * inside.unsqueeze(2)
    means = (member.T @ within) / counts.unsqueeze(-1)
    centred = states - means[..., own, :]
    if inside is not None:
        centred = centred * inside.unsqueeze(2)
    freedom = (counts.sum(-1) - member.shape[1]).clamp(min=1)
    solve = _in_the_span if shrinkage > 0 and states.shape[1] > len(states) else _in_full
    slope = solve(centred, means, freedom, shrinkage)
    return slope, -0.5 * (means * slope.mT).sum(-1)


def label_discriminants(states: Tensor, given: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """The discriminant of each of several labels: log odds `states @ slope + offset`, no prior.

    Label l has the within covariance S - v d d^T, where S is the covariance of all states, d the
    difference of its two means and v = p (1 - p) the variance of the label. The shrunk inverse
    C^-1 of S therefore serves all: by Sherman and Morrison's identity its slope is
    C^-1 d / (1 - (1 - s) v d^T C^-1 d).

    Args:
        states: `(n, width)`, in the precision to compute in.
        given: `(n, labels)` bool.
        shrinkage: s, in (0, 1]; 0 needs more samples than columns.

    Returns:
        slope `(width, labels)`; offset `(labels,)`, -inf where all samples have one value.
    """
    member = given.to(states.dtype)
    ones = member.sum(0)
    zeros = len(states) - ones
    known = (ones > 0) & (zeros > 0)
    upper = (member.T @ states) / ones.clamp(min=1).unsqueeze(1)
    lower = ((1 - member).T @ states) / zeros.clamp(min=1).unsqueeze(1)
    apart = (upper - lower) * known.to(states.dtype).unsqueeze(1)
    solve = _in_the_span if shrinkage > 0 and states.shape[1] > len(states) else _in_full
    freedom = states.new_full((), len(states))
    slope = solve(states - states.mean(0), apart, freedom, shrinkage)
    variance = ones * zeros / len(states) ** 2
    rest = 1 - (1 - shrinkage) * variance * (apart * slope.T).sum(1)
    slope = slope / rest.clamp(min=1e-6)
    offset = -0.5 * ((upper + lower) * slope.T).sum(1)
    return slope, torch.where(known, offset, -torch.inf)


def _in_full(centred: Tensor, means: Tensor, freedom: Tensor, shrinkage: float) -> Tensor:
    """C^-1 M^T by a solution with the `(width, width)` matrix C."""
    covariance = centred.mT @ centred / freedom[..., None, None]
    spread = _diagonal(covariance).mean(-1).clamp(min=1e-12)
    shrunk = (1 - shrinkage) * covariance
    _diagonal(shrunk).add_(shrinkage * spread.unsqueeze(-1))
    return torch.linalg.solve(shrunk, means.mT)


def _in_the_span(centred: Tensor, means: Tensor, freedom: Tensor, shrinkage: float) -> Tensor:
    """The same by an `(n, n)` matrix, for more columns than samples; Woodbury's identity.

    C^-1 M^T = (M^T - b X^T (a I + b X X^T)^-1 X M^T) / a.
    """
    spread = centred.square().flatten(-2).sum(-1) / (freedom * centred.shape[-1])
    a = (shrinkage * spread.clamp(min=1e-12))[..., None, None]
    b = ((1 - shrinkage) / freedom)[..., None, None]
    gram = b * (centred @ centred.mT)
    _diagonal(gram).add_(a.squeeze(-1))
    inner = torch.linalg.solve(gram, centred @ means.mT)
    return (means.mT - b * (centred.mT @ inner)) / a


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)
