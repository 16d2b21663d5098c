"""MentorNet: weights of the loss in closed form, or by a network learned beforehand.

Jiang et al., ICML 2018. Symbols: l loss; d = l - m, m the moving average of the batch's
p-th loss percentile; e percent of training done, 0 to 99; v weight in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from deepteach.core.losses import log_of
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.rng import stream
from deepteach.teachers.mentor_network import MentorNetwork, percentile
from deepteach.teachers.method import Method, recipe

PredefinedKind = Literal["published", "spl", "hard", "focal", "linear"]

PREDEFINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "spl": lambda losses, d: (d <= 0).to(losses.dtype),
    "hard": lambda losses, d: (d >= 0).to(losses.dtype),
    "focal": lambda losses, d: (-torch.expm1(-losses)).square(),
    "linear": lambda losses, d: (1 - d).clamp(0, 1),
}
"""v*(l, d): self-paced, hard mining, focal with exponent 2, linear (SPCL) with slope 1."""

DROPOUT = ((0.5, 17), (0.05, 78), (0.9, 5))
"""(share of a batch dropped at random, for how many percent of training), as shipped."""


def predefined_weights(kind: str, losses: Tensor, differences: Tensor, percent: int) -> Tensor:
    """v* in closed form, `(batch,)`: what the paper calls a predefined curriculum.

    "published" is the shipped schedule: all samples up to 18 percent, then self-paced, and
    linear from 90 percent on.
    """
    if kind == "published":
        if percent <= 18:
            return torch.ones_like(losses)
        kind = "spl" if percent < 90 else "linear"
    return PREDEFINED[kind](losses, differences)


class MentorNet(AbstractTeacher):
    """v(l, d, e) in closed form or by a frozen network; L = (1/n) sum v l.

    Jiang et al., ICML 2018. The network comes from `fit_mentor` and is given by `adopt`; until
    then all weigh alike. The source also scales its weight decay by the mean weight; here
    that is the optimizer's own.

    Nothing here is learned by meta-gradients. The moving average is the only memory. A look
    at the weights without gradients, as `coach.weights` takes, neither drops nor remembers.

    Args:
        kind: a closed form ("published", "spl", "hard", "focal", "linear"), or "data-driven".
        percentile: p of the batch's losses, in [0, 1].
        decay: of its moving average m.
        burn_in: percent of training below which data-driven weights are 1, and at which e
            then stays.
        dropout: pairs (share of a batch dropped at random, for how many percent of training).
        seed: names the draws, together with the step.

    Raises:
        ConfigError: an unknown kind, or a setting outside its range.
    """

    normalised = False
    per_sample = False
    held: Tensor
    ahead: Tensor
    step: Tensor
    ready: Tensor
    network: Tensor

    def __init__(
        self,
        kind: PredefinedKind | Literal["data-driven"] = "published",
        *,
        percentile: float = 0.7,
        decay: float = 0.9,
        burn_in: int | None = None,
        dropout: Sequence[tuple[float, int]] = DROPOUT,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in ("published", "data-driven", *PREDEFINED):
            raise ConfigError(
                f"MentorNet's kind must be published, data-driven, {', '.join(PREDEFINED)}; "
                f"got {kind!r}"
            )
        if not 0 <= percentile <= 1 or not 0 <= decay < 1:
            raise ConfigError(
                "MentorNet takes a percentile in [0, 1] and a decay in [0, 1), got "
                f"percentile={percentile}, decay={decay}"
            )
        self.rates = [rate for rate, percents in dropout for _ in range(percents)]
        if len(self.rates) != 100 or not all(0 <= rate <= 1 for rate in self.rates):
            raise ConfigError("MentorNet's dropout must give shares in [0, 1] for 100 percent")
        self.kind, self.percentile, self.decay, self.seed = kind, percentile, decay, seed
        self.learned = kind == "data-driven"
        self.burn_in = (18 if self.learned else 0) if burn_in is None else burn_in
        # Frozen, the network is memory and not a parameter: only its shape is held here.
        self._form = [MentorNetwork(seed)]
        self.register_buffer("network", _flat(self._form[0]))
        # `held` is the average before the batch of step `step`, `ahead` that after it. The
        # first pass of a later step moves on; repeating a pass changes nothing.
        self.register_buffer("held", torch.zeros((), dtype=torch.float64))
        self.register_buffer("ahead", torch.zeros((), dtype=torch.float64))
        self.register_buffer("step", torch.full((), -1, dtype=torch.long))
        self.register_buffer("ready", torch.tensor(not self.learned))

    def adopt(self, network: MentorNetwork) -> None:
        """Use this network from now on.

        Raises:
            ConfigError: this teacher's weights are predefined.
        """
        if not self.learned:
            raise ConfigError("only MentorNet('data-driven') takes a network")
        self.network, self.ready = _flat(network), torch.ones_like(self.ready)

    def restart(self) -> None:
        """Forget the moving average, for another training."""
        self.held, self.ahead = torch.zeros_like(self.held), torch.zeros_like(self.ahead)
        self.step = torch.full_like(self.step, -1)

    def forward(self, snapshot: Snapshot) -> Tensor:
        losses = snapshot.losses.detach()
        if not self.ready:
            return torch.zeros_like(losses)
        percent = min(99, math.floor(100 * snapshot.clock.progress + 1e-9))
        if self.learned:
            percent = min(percent, self.burn_in)
        differences = losses - self._average(losses, snapshot).to(losses.dtype)
        if percent < self.burn_in - 1:
            weights = torch.ones_like(losses)
        elif self.learned:
            percents = torch.full_like(losses, percent, dtype=torch.long)
            nn.utils.vector_to_parameters(self.network, self._form[0].parameters())
            with torch.no_grad():
                weights = self._form[0](losses, differences, percents).sigmoid().to(losses.dtype)
        else:
            weights = predefined_weights(self.kind, losses, differences, percent)
        if torch.is_grad_enabled():
            weights = weights * self._kept(len(losses), percent, snapshot.clock.step).to(losses)
        return log_of(weights)

    def _average(self, losses: Tensor, snapshot: Snapshot) -> Tensor:
        """m <- decay m + (1 - decay) P_p(losses), counted once per step."""
        step, left_out = snapshot.clock.step, snapshot.ignored()
        held = self.ahead if step > int(self.step) else self.held
        if left_out is not None and bool(left_out.any()):
            losses = losses[~left_out] if not bool(left_out.all()) else losses
        present = percentile(losses, self.percentile).to(held)
        average = self.decay * held + (1 - self.decay) * present
        if torch.is_grad_enabled():
            self.held, self.ahead = held, average
            self.step = torch.full_like(self.step, step)
        return average

    def _kept(self, count: int, percent: int, step: int) -> Tensor:
        """1 for a uniform floor(n (1 - rate)) of the batch, without replacement."""
        kept = torch.zeros(count)
        number = math.floor(count * (1 - self.rates[percent]) + 1e-9)
        draw = torch.randperm(count, generator=stream(self.seed, "mentornet", step))
        kept[draw[:number]] = 1
        return kept


def _flat(network: MentorNetwork) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach().clone()


@recipe("mentornet")
def mentornet(
    seed: int,
    kind: PredefinedKind = "published",
    percentile: float = 0.7,
    decay: float = 0.9,
) -> Method:
    """MentorNet's predefined weights."""
    return Method(MentorNet(kind, percentile=percentile, decay=decay, seed=seed))
