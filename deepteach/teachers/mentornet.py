"""MentorNet: curricula in closed form, or learned once from samples whose labels were checked.

Jiang et al., ICML 2018. Symbols: l loss; d = l - m, m the moving average of the batch's
p-th loss percentile; e percent of training done, 0 to 99; v weight in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deepteach.core.losses import log_of
from deepteach.core.predict import logits
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError, DataError
from deepteach.rng import stream
from deepteach.teachers.curriculum import Curriculum, TrainingView

PredefinedKind = Literal["published", "spl", "hard", "focal", "linear"]

CURRICULA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "spl": lambda losses, d: (d <= 0).to(losses.dtype),
    "hard": lambda losses, d: (d >= 0).to(losses.dtype),
    "focal": lambda losses, d: (-torch.expm1(-losses)).square(),
    "linear": lambda losses, d: (1 - d).clamp(0, 1),
}
"""v*(l, d): self-paced, hard mining, focal with exponent 2, linear (SPCL) with slope 1."""

PERCENTILES = (0.4, 0.5, 0.6, 0.75, 0.8, 0.9)
"""Percentiles at which the data-driven network sees each flagged sample."""

DROPOUT = ((0.5, 17), (0.05, 78), (0.9, 5))
"""(share of a batch dropped at random, for how many percent of training), as shipped."""


def curriculum(kind: str, losses: Tensor, differences: Tensor, percent: int) -> Tensor:
    """v* of a predefined curriculum, `(batch,)`.

    "published" is the shipped schedule: all samples up to 18 percent, then self-paced, and
    linear from 90 percent on.
    """
    if kind == "published":
        if percent <= 18:
            return torch.ones_like(losses)
        kind = "spl" if percent < 90 else "linear"
    return CURRICULA[kind](losses, differences)


class MentorNetwork(nn.Module):
    """(l, d, label, e) -> logit of v: a bi-LSTM of one unit and one step, then 20 tanh units.

    As in the source the label is always 0, the epoch embedding is not trained, the LSTM
    gives its cell states, and dense layers start at standard normal values. The source adds
    the output bias to the weights before the product; here it is a bias.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTM(2, 1, bidirectional=True)
            self.label = nn.Embedding(2, 2)
            self.epoch = nn.Embedding(100, 5)
            self.dense, self.out = nn.Linear(9, 20), nn.Linear(20, 1)
            for leaf in (*self.dense.parameters(), *self.out.parameters()):
                nn.init.normal_(leaf)
        self.epoch.weight.requires_grad_(False)

    def forward(self, losses: Tensor, differences: Tensor, percent: Tensor) -> Tensor:
        pair = torch.stack([losses, differences], 1).to(self.out.weight.dtype)
        _, (_, cells) = self.lstm(pair.unsqueeze(0))
        label = self.label(torch.zeros_like(percent))
        joined = torch.cat([label, self.epoch(percent), cells.squeeze(2).T], 1)
        return self.out(self.dense(joined).tanh()).squeeze(1)


def percentile(losses: Tensor, p: float) -> Tensor:
    """The p-th percentile (p in [0, 1]) by the nearest rank, a scalar."""
    return losses.quantile(p, interpolation="nearest")


def fit_mentor(
    losses: Tensor,
    clean: Tensor,
    thresholds: Tensor,
    *,
    steps: int = 1000,
    rate: float = 0.01,
    seed: int = 0,
) -> MentorNetwork:
    """A network that tells right from wrong labels, `v* = clean`, by cross-entropy.

    Args:
        losses: `(epochs, m)` loss of each flagged sample after each epoch of a plain training.
        clean: `(m,)` whether its label was right.
        thresholds: `(epochs, percentiles)` percentiles of all training losses at that epoch.
        steps: of Adam, on 1024 random rows each.
        rate: of Adam.
        seed: of the initial values and the rows.

    Raises:
        DataError: the flags are all alike, so there is nothing to learn.
    """
    if bool(clean.all()) or not bool(clean.any()):
        raise DataError("MentorNet needs right and wrong labels among the flagged samples")
    epochs, columns = len(losses), thresholds.shape[1]
    percent = (torch.arange(epochs, device=losses.device) * 100 // epochs).view(-1, 1, 1)
    shape = (epochs, len(clean), columns)
    flat = losses.unsqueeze(2).expand(shape).flatten()
    differences = (losses.unsqueeze(2) - thresholds.unsqueeze(1)).flatten()
    percents = percent.expand(shape).flatten()
    target = clean.to(losses.dtype).view(1, -1, 1).expand(shape).flatten()
    network = MentorNetwork(seed).to(losses.device)
    trained = [leaf for leaf in network.parameters() if leaf.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate)
    with torch.enable_grad():
        for step in range(steps):
            drawn = torch.randint(len(flat), (1024,), generator=stream(seed, "mentor", step))
            rows = drawn.to(flat.device)
            optimizer.zero_grad()
            logits = network(flat[rows], differences[rows], percents[rows])
            nn.functional.binary_cross_entropy_with_logits(logits, target[rows]).backward()
            optimizer.step()
    return network


class MentorNet(AbstractTeacher):
    """v(l, d, e) by a predefined curriculum or a frozen network; L = (1/n) sum v l.

    The network comes from `fit_mentor`, or is given later by `adopt`; until then all weigh
    alike. Data-driven weights are 1 below `burn_in` percent, where e then stays. A random
    share of each batch is dropped; the draw is named by `seed` and the step. The source
    also scales its weight decay by the mean weight; here that is the optimizer's own.

    Nothing here is learned by meta-gradients. The moving average is the only memory. A look
    at the weights without gradients, as `coach.weights` takes, neither drops nor remembers.

    Raises:
        ConfigError: an unknown curriculum, or a setting outside its range.
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
        if kind not in ("published", "data-driven", *CURRICULA):
            raise ConfigError(
                f"MentorNet's kind must be published, data-driven, {', '.join(CURRICULA)}; "
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
            ConfigError: this teacher follows a predefined curriculum.
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
        differences = losses - self._average(losses, snapshot.clock.step).to(losses.dtype)
        if percent < self.burn_in - 1:
            weights = torch.ones_like(losses)
        elif self.learned:
            percents = torch.full_like(losses, percent, dtype=torch.long)
            nn.utils.vector_to_parameters(self.network, self._form[0].parameters())
            with torch.no_grad():
                weights = self._form[0](losses, differences, percents).sigmoid().to(losses.dtype)
        else:
            weights = curriculum(self.kind, losses, differences, percent)
        if torch.is_grad_enabled():
            weights = weights * self._kept(len(losses), percent, snapshot.clock.step).to(losses)
        return log_of(weights)

    def _average(self, losses: Tensor, step: int) -> Tensor:
        """m <- decay m + (1 - decay) P_p(losses), counted once per step."""
        held = self.ahead if step > int(self.step) else self.held
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


class Flagged(Curriculum):
    """MentorNet's data-driven curriculum: a first training teaches the network.

    It trains plainly on all samples, the trusted ones with a share `corrupted` of labels
    exchanged for random other ones, and notes every trusted sample's loss after each epoch:
    we know which of these labels are wrong. Then the network is fitted and frozen, and the
    reported training starts over on the training set.
    """

    episodes = 2

    def __init__(self, teacher: MentorNet, corrupted: float = 0.4) -> None:
        if not 0 < corrupted < 1:
            raise ConfigError(f"corrupted must lie within (0, 1), got {corrupted}")
        self.teacher, self.corrupted = teacher, corrupted
        self.losses: list[Tensor] = []
        self.thresholds: list[Tensor] = []

    def rows(self, training: TrainingView) -> Tensor:
        flagged = len(training.y_valid) if training.episode == 0 else 0
        return torch.arange(len(training.y) + flagged)

    def trusted_labels(self, training: TrainingView) -> Tensor:
        labels = training.y_valid.cpu()
        generator = stream(training.seed, "flags")
        count = max(1, min(len(labels) - 1, round(self.corrupted * len(labels))))
        chosen = torch.randperm(len(labels), generator=generator)[:count]
        classes = int(max(training.y.max(), training.y_valid.max())) + 1
        shift = torch.randint(1, classes, (count,), generator=generator)
        labels = labels.clone()
        labels[chosen] = (labels[chosen] + shift) % classes
        return labels.to(training.y_valid.device)

    def epoch_end(self, training: TrainingView) -> None:
        if training.episode == 0:
            flagged = _losses(training.module, training.x_valid, self.trusted_labels(training))
            pool = torch.cat([flagged, _losses(training.module, training.x, training.y)])
            self.losses.append(flagged)
            self.thresholds.append(torch.stack([percentile(pool, p) for p in PERCENTILES]))

    def episode_end(self, training: TrainingView) -> None:
        if training.episode == 0:
            clean = (self.trusted_labels(training) == training.y_valid).cpu()
            losses, thresholds = torch.stack(self.losses), torch.stack(self.thresholds)
            network = fit_mentor(losses, clean, thresholds, seed=training.seed)
            self.teacher.adopt(network.to(training.x.device))
            self.teacher.restart()
            self.losses, self.thresholds = [], []

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "thresholds": list(self.thresholds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.thresholds = list(state["losses"]), list(state["thresholds"])


def _losses(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """`(n,)` cross-entropies in eval mode, on the CPU."""
    return nn.functional.cross_entropy(logits(module, x), y.cpu(), reduction="none")
