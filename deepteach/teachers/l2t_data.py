"""L2T-data: a policy that keeps or drops samples, taught by REINFORCE (Fan et al., ICLR 2018).

Symbols: n batch, C classes, phi the policy's parameters, q_i its probability to keep sample
i, a_i what was drawn, r the reward of an episode, which is one training of the student.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from deepteach.core.adjoint.base import AbstractAdjoint, MetaGradient, Window
from deepteach.core.losses import log_of, margin
from deepteach.core.optim import State
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.core.validation import Validation
from deepteach.errors import ConfigError
from deepteach.rng import stream
from deepteach.teachers.class_indices import class_indices, log_probability
from deepteach.tree import Params

DECAY = 5e-4
"""Weight of |phi|^2 in the policy's loss, as in the authors' code."""


class L2TData(AbstractTeacher):
    """q_i = sigmoid(phi s_i + b), a_i ~ Bernoulli(q_i): kept samples weigh 1, others 0.

    Fan et al., ICLR 2018. s_i: one-hot label, softmax, -log p_y, margin, progress, mean
    training loss / log C and best validation accuracy so far (the paper has the best loss). b
    starts at 2, so nearly everything is kept. The policy learns between episodes, by
    `ScoreFunction`. The reward is speed: tau_k are `thresholds` of validation accuracy, n_k the
    samples accepted before tau_k is reached (n if never), and

        r = sum_k c_k (-log(n_k / n)),     c = (1, 2, 3, ...) / sum

    Call `report(accuracy)` as often as validation accuracy is known; set `Coach(interval=)`
    to the steps of an episode. A look at the weights without gradients, as `coach.weights`
    takes, shows q_i.

    Args:
        classes: C.
        hidden: units of a tanh layer, 12 in the paper; 0 for none.
        thresholds: tau_k, rising, in (0, 1]; the published values for MNIST unless given.
        relative: tau_k is that share of the best accuracy of the first episode, which then
            serves as the baseline only.
        pooled: the loop itself pools what `draw` keeps to full minibatches, of which all
            samples weigh alike.
        seed: names the draws, together with episode and step.

    Raises:
        ConfigError: no thresholds, or not rising ones in (0, 1].
    """

    per_sample = False
    score: Tensor
    seen: Tensor
    kept: Tensor
    baseline: Tensor
    episode: Tensor
    tau: Tensor

    def __init__(
        self,
        classes: int,
        *,
        hidden: int = 0,
        thresholds: Sequence[float] = (0.95, 0.97, 0.98),
        relative: bool = True,
        pooled: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        marks = list(thresholds)
        if not marks or marks != sorted(marks) or not 0 < marks[0] <= marks[-1] <= 1:
            raise ConfigError(f"L2TData's thresholds must rise within (0, 1], got {marks}")
        self.classes, self.pooled, self.seed = classes, pooled, seed
        self.thresholds, self.relative = marks, relative
        width = 2 * classes + 5
        layers: list[nn.Module] = [nn.Linear(width, hidden), nn.Tanh()] if hidden else []
        last = nn.Linear(hidden or width, 1)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.constant_(last.bias, 2.0)
        self.policy = nn.Sequential(*layers, last)
        size = sum(leaf.numel() for leaf in self.policy.parameters())
        self.register_buffer("score", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("kept", torch.zeros((), dtype=torch.long))
        self.register_buffer("baseline", torch.zeros((), dtype=torch.float64))
        self.register_buffer("episode", torch.zeros((), dtype=torch.long))
        self.register_buffer("tau", torch.tensor(marks, dtype=torch.float64))
        self.curve: list[tuple[float, float]] = []
        self._last: tuple[Tensor, Tensor] | None = None

    def get_extra_state(self) -> Tensor:
        """(accepted, accuracy) of this episode's reports."""
        return torch.tensor(self.curve, dtype=torch.float64).reshape(-1, 2)

    def set_extra_state(self, state: Tensor) -> None:
        self.curve = [(float(count), float(accuracy)) for count, accuracy in state]

    def default_adjoint(self) -> ScoreFunction:
        return ScoreFunction(self)

    def features(self, snapshot: Snapshot) -> Tensor:
        """s_i, `(n, 2 C + 5)`."""
        index = class_indices(snapshot, "L2TData", "another teacher")
        labels, clock = index.clamp(min=0), snapshot.clock
        seen = replace(snapshot, logits=snapshot.logits[:, : self.classes])
        p = seen.logits.softmax(1)
        given = nn.functional.one_hot(labels, self.classes).to(p.dtype)
        surprise, lead = -log_probability(seen, "L2TData"), margin(p, labels)
        best = max((accuracy for _, accuracy in self.curve), default=0.0)
        common = p.new_tensor([clock.progress, clock.mean_loss / math.log(self.classes), best])
        columns = [given, p, surprise.unsqueeze(1), lead.unsqueeze(1), common.expand(len(p), 3)]
        return torch.cat(columns, 1).detach().to(next(self.policy.parameters()).dtype)

    @torch.no_grad()
    def draw(self, snapshot: Snapshot, part: int = 0) -> Tensor:
        """a `(n,)` of booleans; the same for the same episode, step and part."""
        features = self.features(snapshot)
        name = f"keep/{int(self.episode)}/{part}"
        uniform = torch.rand(len(features), generator=stream(self.seed, name, snapshot.clock.step))
        kept = uniform.to(features) < self.policy(features).squeeze(1).sigmoid()
        self._last = (features, kept)
        return kept

    def commit(self, count: int | None = None) -> None:
        """Add the last draw (its first `count` samples) to the episode's score.

        The score is the gradient of sum_i BCE(q_i, a_i) = -sum_i log pi(a_i | s_i).
        """
        if self._last is None:
            return
        features, kept = self._last[0][:count], self._last[1][:count]
        leaves = list(self.policy.parameters())
        with torch.enable_grad():
            logits = self.policy(features).squeeze(1)
            loss = nn.functional.binary_cross_entropy_with_logits(
                logits, kept.to(logits), reduction="sum"
            )
            found = torch.autograd.grad(loss, leaves)
        self.score = self.score + torch.cat([leaf.flatten().to(self.score) for leaf in found])
        self.seen, self.kept = self.seen + len(kept), self.kept + kept.sum()
        self._last = None

    def forward(self, snapshot: Snapshot) -> Tensor:
        if not torch.is_grad_enabled():
            features = self.features(snapshot)
            return nn.functional.logsigmoid(self.policy(features).squeeze(1)).to(snapshot.losses)
        if self.pooled:
            return torch.zeros_like(snapshot.losses)
        kept = self.draw(snapshot).to(snapshot.losses)
        # A batch of which nothing is kept is used whole: there is no empty step.
        return torch.where(kept.any(), log_of(kept), torch.zeros_like(kept))

    def report(self, accuracy: float) -> None:
        """Note the validation accuracy after the samples accepted so far.

        Call it between steps, not between `optimizer.step()` and `coach.update`.
        """
        self.curve.append((float(self.kept), accuracy))

    def reward(self) -> float:
        """r of the episode so far."""
        if self.relative and int(self.episode) == 0:
            best = max((accuracy for _, accuracy in self.curve), default=0.0)
            self.tau = self.tau.new_tensor(self.thresholds) * best
        total = max(float(self.kept), 1.0)
        weights = range(1, len(self.thresholds) + 1)
        found = 0.0
        for weight, mark in zip(weights, self.tau.tolist(), strict=True):
            reached = [count for count, accuracy in self.curve if accuracy >= mark]
            found -= weight * math.log(max(min([total, *reached]), 1.0) / total)
        return found / sum(weights)

    def finish(self) -> Params:
        """The policy's gradient of this episode, `(r - baseline) score / n` + decay.

        The baseline follows as .2 baseline + .8 r, and a new episode begins.
        """
        reward = self.reward()
        if self.relative and int(self.episode) == 0:
            self.baseline = torch.full_like(self.baseline, reward)
        mean = (reward - self.baseline) * self.score / max(int(self.seen), 1)
        self.baseline = 0.2 * self.baseline + 0.8 * reward
        found: Params = {}
        sizes = [leaf.numel() for leaf in self.policy.parameters()]
        for (name, leaf), part in zip(
            self.policy.named_parameters(), mean.split(sizes), strict=True
        ):
            found[f"policy.{name}"] = part.view_as(leaf).to(leaf) + 2 * DECAY * leaf.detach()
        self.score, self.curve = torch.zeros_like(self.score), []
        self.seen, self.kept = torch.zeros_like(self.seen), torch.zeros_like(self.kept)
        self.episode = self.episode + 1
        return found


class ScoreFunction(AbstractAdjoint):
    """REINFORCE: the teacher's gradient from a reward at the end of an episode.

    It looks back through what was drawn, not through the optimizer's steps; no state of the
    student is kept. An episode is `interval` steps of the coach.
    """

    shares = False
    reweighs = False  # the next episode draws otherwise

    def __init__(self, teacher: L2TData) -> None:
        super().__init__()
        self.teacher = teacher

    def keep(self, state: State, position: int, window: int) -> State | None:
        if not self.teacher.pooled:
            self.teacher.commit()
        return None

    def gradient(self, window: Window, validation: Validation) -> MetaGradient:
        validation.gradient(window.final.theta)
        accuracy = validation.accuracy()
        if accuracy is None:
            raise ConfigError("L2TData needs trusted labels that are class indices")
        self.teacher.report(accuracy)
        return MetaGradient(self.teacher.finish(), None)
