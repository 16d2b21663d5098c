"""Ridge regression with its leave-one-out residuals, at a cost that follows the samples.

Symbols: n samples, X the `(n, width)` states less their mean, Y the targets less theirs,
X^T X = V diag(e) V^T, U = X V e^(-1/2). With the penalty r the slope is (X^T X + r I)^-1 X^T Y
(Hoerl & Kennard, Technometrics 1970). What a sample's own prediction would miss had it been left
out is (y_i - yhat_i) / (1 - h_i), with h_i = 1/n + sum_k U_ik^2 e_k / (e_k + r) (Allen,
Technometrics 1974): cross-fitting in n parts by one decomposition.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PENALTIES = 25
"""Penalties that are tried, from 1e-4 to 1e4 times the mean of e over the width."""


class Ridge(NamedTuple):
    """Predictions are `states @ slope + offset`.

    slope `(width, outputs)`; offset `(outputs,)`; spread `(outputs,)`: standard deviation of the
    targets; scale `(outputs,)`: that of their leave-one-out residuals.
    """

    slope: Tensor
    offset: Tensor
    spread: Tensor
    scale: Tensor


def ridge(states: Tensor, targets: Tensor, shrinkage: float | None) -> Ridge:
    """Fit every output by one penalty.

    Args:
        states: `(n, width)`, in the precision to compute in.
        targets: `(n, outputs)`.
        shrinkage: s in (0, 1), the penalty s / (1 - s) of the mean of e; the one whose
            leave-one-out residuals are least, in units of each output's spread, unless given.
    """
    count = len(states)
    x, y = states - states.mean(0), targets - targets.mean(0)
    spread = y.square().mean(0).sqrt()
    known = spread > 1e-12 * targets.abs().amax(0).clamp(min=1e-300)
    wide = x.shape[1] > count
    e, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    e = e.clamp(min=0)
    floor = torch.finfo(e.dtype).eps * e[-1].clamp(min=1e-300) * len(e)
    kept = e > floor  # the directions in which the states move
    root = torch.where(kept, e, 1.0).sqrt()
    u = (vectors if wide else x @ vectors / root) * kept.to(x.dtype)
    inner = u.T @ y
    mean = e.sum() / x.shape[1]
    if shrinkage is not None:
        penalties = mean.new_tensor([shrinkage / (1 - shrinkage)]) * mean
    else:
        penalties = torch.logspace(-4, 4, PENALTIES, dtype=e.dtype, device=e.device) * mean
    share = e / (e + penalties.clamp(min=floor).unsqueeze(1))  # (penalties, directions)
    missed = y - torch.einsum("ik,pk,kd->pid", u, share, inner)
    own = 1 / count + u.square() @ share.T  # (n, penalties)
    left = missed / (1 - own).T.clamp(min=1e-6).unsqueeze(2)
    error = left.square().mean(1)  # (penalties, outputs)
    unit = torch.where(known, spread, 1.0).square()
    best = (error / unit)[:, known].sum(1).argmin() if known.any() else 0
    shrunk = (share[best] / root).unsqueeze(1) * inner
    slope = x.T @ (u * (1 / root) @ shrunk) if wide else vectors @ shrunk
    offset = targets.mean(0) - states.mean(0) @ slope
    return Ridge(slope, offset, torch.where(known, spread, 0.0), error[best].sqrt())
