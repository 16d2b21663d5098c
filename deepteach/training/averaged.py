"""An exponential moving average of a student's parameters, to be evaluated beside the student."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from deepteach.rng import replayed


class MovingAverage:
    """a_1 = theta_1, a_t = decay a_(t-1) + (1 - decay) theta_t after every step t.

    Torch's `AveragedModel` (Polyak & Juditsky, SIAM J. Control Optim. 1992, with exponential
    weights). The student never sees it. Its buffers are those of the student's last step; the
    statistics of batch normalisation, which belong to other parameters, are found anew by
    `settle` before it is evaluated.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def module(self) -> nn.Module:
        """A module as the student, with the averaged parameters."""
        return self._averaged.module

    def update(self, module: nn.Module) -> None:
        """Take in the student after a step."""
        self._averaged.update_parameters(module)

    def start_over(self) -> None:
        """Begin at the next step, as if there had been none."""
        self._averaged.n_averaged.zero_()

    def settle(self, batches: Iterable[Tensor], seed: int) -> None:
        """Find the statistics of batch normalisation: means over `batches`, in train mode.

        What dropout draws is named by `seed`; the global generators are left as they were.
        """
        with replayed(None):
            torch.manual_seed(seed)
            update_bn(batches, self.module)

    def state_dict(self) -> dict[str, Any]:
        """What a bit-exact resume needs."""
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._averaged.load_state_dict(state)
