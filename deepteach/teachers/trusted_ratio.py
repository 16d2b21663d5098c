"""How much likelier a sample's fit is among trusted samples than among training samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from deepteach.core.feature import Feature
from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError
from deepteach.teachers.fitted import Probe, adopt_shapes
from deepteach.teachers.group import rides
from deepteach.teachers.trusted_probe import TrustedProbe

MEMORY = 0.9
"""Share of the earlier estimate that an update keeps."""

RIDGE = 0.02
"""Pull of the slope to 0, so that what cannot be told apart is not."""


LEAST_PER_CLASS = 10
"""Trusted samples of a class, on average, from which on they tell classes apart."""

LEAST_RIGHT = 0.75
"""Of the share of trusted samples that the student is right of: what the probe must be right of."""

WAITING = ("states", "logits", "labels")
"""Of the training samples since the last update, which the next one reads."""


class TrustedRatio(Feature):
    """The trusted probe's word on the given label, as far as it tells training from trusted labels.

    One number a sample: the log ratio of densities, trusted over training, of f, the probe's
    `agreement`. A logistic regression that tells trusted samples from the training samples of the
    last steps gives it (density ratio estimation: Sugiyama et al., 2012): s f - c with s >= 0, and
    c such that the ratio is 1 on average over the training samples. Trusted samples are read by
    probes that were not fitted on them, in `folds` parts. Where the given labels are as good as
    the trusted ones, s goes to 0 and the feature says nothing: it has to earn its way in on
    samples that it did not see. The two numbers of `TrustedProbe` go up and down together, so
    that a slope of each would be rounding against rounding; f is their sum.

    Fitted on fewer than `LEAST_PER_CLASS` samples a class it is `heard` only while the probes are
    right of the class of at least `LEAST_RIGHT` times as many of the samples left out as the
    student is. A probe of a few samples may know less than the student: to train by its word cost
    points of accuracy (LOG.md).

    A mean over updates; 0 until the first one.

    Args:
        probe: reads the states and the labels: a `TrustedProbe` unless given, a
            `TrustedRegression` of quantities.
        folds: parts of the cross-fitting.

    Raises:
        ConfigError: fewer than 2 folds; labels that the probe cannot read, when first seen.
    """

    width = 1
    reads_trusted = True
    evidence = True
    slope: Tensor
    level: Tensor
    raw: Tensor
    mass: Tensor
    states: Tensor
    logits: Tensor
    labels: Tensor
    knows: Tensor

    def __init__(self, probe: Probe | None = None, *, folds: int = 5) -> None:
        super().__init__()
        if folds < 2:
            raise ConfigError(f"TrustedRatio cross-fits in 2 folds or more, got {folds}")
        self.probe: Probe = probe or TrustedProbe()
        self.folds = folds
        self.register_buffer("slope", torch.zeros(()))
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("raw", torch.zeros(2))
        self.register_buffer("mass", torch.zeros(()))
        self.register_buffer("knows", torch.ones(()))
        self.register_load_state_dict_pre_hook(_hear)
        for name in WAITING:
            self.register_buffer(name, torch.zeros(0))
        adopt_shapes(self, WAITING)

    @property
    def heard(self) -> Tensor:
        return self.knows

    def forward(self, snapshot: Snapshot) -> Tensor:
        told = self.probe.agreement(snapshot)
        return (told * self.slope.to(told.dtype) - self.level.to(told.dtype)).unsqueeze(1)

    @torch.no_grad()
    def observe(self, snapshot: Snapshot) -> None:
        # Kept as they are: only the next probe can be compared with what it says of the trusted.
        own = ~rides(snapshot)
        for name, new in zip(WAITING, _columns(snapshot), strict=True):
            kept = getattr(self, name)
            setattr(self, name, new[own] if not len(kept) else torch.cat([kept, new[own]]))

    @torch.no_grad()
    def fit(self, trusted: Snapshot) -> None:
        held, right = self._held_out(trusted)
        waiting = [getattr(self, name) for name in WAITING]
        for name, columns in zip(WAITING, waiting, strict=True):
            setattr(self, name, columns[:0])
        states, logits, labels = waiting
        self.knows.fill_(1)
        if right is not None and 0 < len(right) < LEAST_PER_CLASS * trusted.logits.shape[1]:
            student = (trusted.logits.argmax(1) == trusted.labels).double().mean()
            self.knows.copy_(right.double().mean() >= LEAST_RIGHT * student)
        if not self.probe.fitted or not len(states) or not len(held):
            return
        training = Snapshot(states, logits, labels, torch.zeros_like(states[:, 0]))
        seen = self.probe.agreement(training)
        found = told_apart(held.double(), seen.double(), alike(labels, trusted.labels))
        self.mass.mul_(MEMORY).add_(1 - MEMORY)
        self.raw[0].mul_(MEMORY).add_((1 - MEMORY) * found.to(self.raw))
        self.slope.copy_((self.raw[0] / self.mass).clamp(min=0))
        level = (self.slope * seen).logsumexp(0) - math.log(len(seen))
        self.raw[1].mul_(MEMORY).add_((1 - MEMORY) * level.to(self.raw))
        self.level.copy_(self.raw[1] / self.mass)

    def _held_out(self, trusted: Snapshot) -> tuple[Tensor, Tensor | None]:
        """Fits the probe; `(m,)` what others say of trusted samples that they were not fitted on.

        And `(m,)` bool, whether they find the class of each; None where labels are none, or the
        student's logits do not tell classes.
        """
        probe = self.probe
        together = probe.cross_fit(trusted)
        if together is not None and probe.folds == self.folds:
            return probe.joined(together), _right(together, trusted)
        labels: Any = trusted.labels
        count, told = len(trusted.losses), []
        order = torch.arange(count, device=trusted.losses.device)
        if isinstance(labels, Tensor) and labels.dim() == 1:
            order = labels.argsort(stable=True)
        for fold in range(min(self.folds, count)):
            held = trusted.rows(order[fold :: self.folds])
            rest = torch.cat([order[k :: self.folds] for k in range(self.folds) if k != fold])
            other = probe.refitted(trusted.rows(rest))
            told += [other(held)] if other.fitted else []
        if not told:
            return trusted.losses[:0], None
        right = _right(torch.cat(told), trusted) if probe.tells_classes else None
        return probe.joined(torch.cat(told)), right


def _right(pairs: Tensor, trusted: Snapshot) -> Tensor | None:
    """`(m,)` whether the margin of the given class `(m, 2)` is above 0, where it is a class."""
    labels: Any = trusted.labels
    indices = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
    return pairs[:, 1] > 0 if indices and trusted.logits.dim() == 2 else None


def _hear(_module: nn.Module, state: dict, prefix: str, *_: object) -> None:
    """States of before do not say whether it was."""
    if prefix + "slope" in state:
        state.setdefault(prefix + "knows", torch.ones(()))


def alike(given: Tensor, trusted: Any) -> Tensor:
    """`(n,)` how much each training sample counts, so that its classes are as frequent as trusted.

    A rare class fits worse whether its labels are right or not; without this a long tail of right
    labels was taken for wrong ones. One sample is added to each class, so that a single one of a
    class that is hardly seen does not speak for all of it. All count alike where labels are no
    class indices.
    """
    even = torch.ones(len(given), dtype=torch.float64, device=given.device)
    if not isinstance(trusted, Tensor) or any(
        labels.dim() != 1 or labels.is_floating_point() or bool((labels < 0).any())
        for labels in (given, trusted)
    ):
        return even
    classes = int(max(given.max(), trusted.max())) + 1
    wanted = trusted.bincount(minlength=classes).double()
    counts = (wanted / (given.bincount(minlength=classes) + 1))[given.long()]
    return counts if bool(counts.any()) else even


def told_apart(held: Tensor, seen: Tensor, counts: Tensor) -> Tensor:
    """The slope of the ridge logistic regression of `held` `(m,)` against `seen` `(n,)`.

    Both sides count alike, whatever their sizes; `counts` `(n,)` shares out that of `seen`.
    Newton's method: a dozen steps of a problem of two numbers, on the data's device, where
    scikit-learn's does not go.
    """
    said = torch.cat([held, seen])
    rows = torch.stack([said, torch.ones_like(said)], 1)
    truth = torch.cat([torch.ones_like(held), torch.zeros_like(seen)])
    share = torch.cat([torch.full_like(held, 0.5 / len(held)), 0.5 * counts / counts.sum()])
    pull = rows.new_tensor([RIDGE, 0.0])
    found, ridge, columns = torch.zeros_like(pull), pull.diag(), rows.T
    for _ in range(12):
        chance = (rows @ found).sigmoid()
        slope = columns @ (share * (chance - truth)) + pull * found
        curve = columns @ (rows * (share * chance * (1 - chance)).unsqueeze(1)) + ridge
        before, found = found, found - torch.linalg.solve(curve, slope)
        if torch.equal(found, before):
            break  # to the last bit: so would be all that follow
    return found[0]


def _columns(snapshot: Snapshot) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(snapshot.labels, Tensor):
        raise ConfigError("TrustedRatio reads labels that are a tensor: use another feature")
    return snapshot.internal.detach(), snapshot.logits.detach(), snapshot.labels
