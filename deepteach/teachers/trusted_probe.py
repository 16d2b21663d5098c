"""The trusted probe: does the given label fit the internal state, by trusted samples?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepteach.core.losses import margin
from deepteach.core.snapshot import Snapshot
from deepteach.errors import ConfigError
from deepteach.teachers.calibration import most_likely
from deepteach.teachers.class_indices import class_indices
from deepteach.teachers.discriminant import (
    discriminant,
    label_discriminants,
    members,
    of_members,
)
from deepteach.teachers.fitted import Probe, adopt_shapes, refuse_width
from deepteach.teachers.folds import turns
from deepteach.teachers.label_kinds import (
    OneClass,
    SeveralLabels,
    hold_by_themselves,
    read_labels,
)

IMPOSSIBLE = -1e4
"""Score of a class that a fold has no sample of: exp of it is 0 in every precision."""

FITTED_AT_ONCE = 2**17
"""Numbers of all folds together that are small enough to be fitted by the same calls."""


class TrustedProbe(Probe):
    """How well the given label fits the internal state, read through trusted samples.

    After each teacher update a linear discriminant analysis is fitted on the trusted
    states: class means m_c and a shared covariance (1-s) S + s mean(diag S) I. Its scores
    are divided by a temperature that cross-fitting in `folds` parts finds most likely. The
    feature is two numbers that carry none of the student's coordinates: the log-probability
    of the given label, clamped at `floor`, and its margin over the best other class.

    Labels 0 and 1 of one logit are two classes. Of probabilities `(batch, classes)`, the means
    are those of the likeliest classes, and the first number is the expected log-probability.
    Several labels of a sample, 0 and 1 in the shape of the logits, have a discriminant each;
    all share one covariance and one temperature, and each keeps its own share of 1 as prior.
    The feature is then the mean log-probability of what was given for them, and the least margin.

    Until it has seen trusted samples, and for labels without any, both numbers are 0; so they
    are for negative labels, which losses ignore. Time and memory follow the number of trusted
    samples: not the square of the states' width, and not the number of classes without a
    trusted sample.

    Args:
        shrinkage: s, in [0, 1].
        folds: parts of the cross-fitting.
        floor: least log-probability.
        several: whether labels of the shape of the logits hold each by itself, else they are
            probabilities of one class. None: they do once those of any trusted sample do not
            sum to 1; where samples have one of several labels each, only you can tell.

    Raises:
        ConfigError: a shrinkage outside [0, 1]; real-valued labels, or those of tokens or pixels,
            when they are first seen; or states of another width than those fitted on.
    """

    unit = (2.0, 5.0)
    evidence = True
    tells_classes = True

    offset: Tensor
    temperature: Tensor

    def __init__(
        self,
        *,
        shrinkage: float = 0.3,
        folds: int = 5,
        floor: float = -10.0,
        several: bool | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= shrinkage <= 1:
            raise ConfigError(f"TrustedProbe's shrinkage must lie in [0, 1], got {shrinkage}")
        self.shrinkage = shrinkage
        self.folds = folds
        self.floor = floor
        self.several = several
        # Shapes are known only at the first fit; loading a state adopts the saved shapes.
        self.register_buffer("slope", torch.zeros(0, 0))
        self.register_buffer("offset", torch.zeros(0))
        self._held: Tensor | None = None
        self._found: _Classes | None = None
        # One number for classes; `(labels,)` equal ones where the labels are several.
        self.register_buffer("temperature", torch.ones(()))
        self.register_load_state_dict_pre_hook(_drop_absent)
        adopt_shapes(self, ("slope", "offset", "temperature"))

    def suggested(self, snapshot: Snapshot) -> Tensor:
        """`(batch,)` the likeliest class of each sample; the given label until it is fitted.

        Raises:
            ConfigError: labels that are no class indices.
        """
        given = class_indices(snapshot, "The suggestion of TrustedProbe")
        if not self.fitted:
            return given
        present = torch.isfinite(self.offset).nonzero().squeeze(1)
        scores = snapshot.internal.to(self.slope.dtype) @ self.slope + self.offset[present]
        return present[scores.argmax(1)].to(given.dtype)

    def joined(self, told: Tensor) -> Tensor:
        """`(batch,)` the sum of the two numbers `(batch, 2)`, in their units."""
        return (told / told.new_tensor(self.unit)).sum(1)

    def refitted(self, trusted: Snapshot) -> TrustedProbe:
        """A probe like this one, with its temperature, fitted on these samples alone."""
        other = TrustedProbe(
            shrinkage=self.shrinkage, folds=1, floor=self.floor, several=self.several
        )
        other.to(trusted.internal.device)
        other._held = self.temperature
        other.fit(trusted)
        return other

    @property
    def _several(self) -> bool:
        if self.several is not None:
            return self.several
        return self.temperature.dim() > 0

    def forward(self, snapshot: Snapshot) -> Tensor:
        states, slope, offset = snapshot.internal, self.slope, self.offset
        read = read_labels(snapshot, "TrustedProbe", several=self._several)
        if slope.numel() == 0:
            self._told_apart(snapshot)  # refuses them now and not later
            return states.new_zeros(len(states), 2)
        refuse_width(states, slope, "TrustedProbe")
        evidence = states.to(slope.dtype) @ slope
        if isinstance(read, SeveralLabels):
            pair = self._of_several(evidence, offset, read.given)
        else:
            pair = self._of_one(evidence, offset, read)
        return pair.to(states.dtype)

    def _told_apart(self, snapshot: Snapshot) -> bool:
        """Whether labels are several; those that once were stay so, whatever a batch sums to."""
        if self.several is not None:
            return self.several
        return hold_by_themselves(snapshot, "TrustedProbe") or self._several

    def _of_one(self, evidence: Tensor, offset: Tensor, read: OneClass) -> Tensor:
        table = None
        if evidence.shape[1] == len(offset):  # every class has samples, so a column of its own
            offsets, column, known = offset, read.index.clamp(min=0), read.index >= 0
        else:
            table = self._table(offset, evidence)
            own = read.index.clamp(min=-1)  # the tables end with what is said of ignored samples
            offsets, column, known = table.offsets, table.columns[own], table.known[own]
        scores, known = (evidence + offsets) / self.temperature, known.unsqueeze(1)
        if read.soft is None:
            return self._pair(scores, column) * known
        log_p = scores.log_softmax(1)
        share = (read.soft if table is None else read.soft[:, table.classes]).to(log_p.dtype)
        total = share.sum(1).clamp(min=torch.finfo(log_p.dtype).tiny)
        expected = (share * log_p.clamp(min=self.floor)).sum(1) / total
        gap = margin(scores, column).clamp(self.floor, -self.floor)
        return torch.stack([expected, gap], 1) * known

    def _pair(self, scores: Tensor, column: Tensor) -> Tensor:
        """`(n, 2)` log-probability and margin of the class that each sample's column stands for."""
        column = column.unsqueeze(1)
        log_p = scores.log_softmax(1).gather(1, column)
        others = scores.scatter(1, column, -torch.inf).amax(1, keepdim=True)
        pair = torch.cat([log_p, scores.gather(1, column) - others], 1)
        return pair.clamp(self.floor, -self.floor)  # no log-probability is above 0

    def _table(self, offset: Tensor, evidence: Tensor) -> _Classes:
        """What the fit says of classes, found once a fit."""
        key = offset._version, evidence.dtype, evidence.shape[1]
        known = self._found
        if known is None or known.offset is not offset or known.key != key:
            known = self._found = _Classes(offset, key, evidence)
        return known

    def _of_several(self, evidence: Tensor, offset: Tensor, given: Tensor) -> Tensor:
        known = torch.isfinite(offset)
        scores = evidence / self.temperature + torch.where(known, offset, 0.0)
        gaps = torch.where(given, scores, -scores)
        log_p = nn.functional.logsigmoid(gaps).clamp(min=self.floor)
        mean = torch.where(known, log_p, 0.0).sum(1) / known.sum().clamp(min=1)
        least = torch.where(known, gaps.clamp(self.floor, -self.floor), -self.floor).amin(1)
        return torch.stack([mean, least * known.any()], 1)

    @torch.no_grad()
    def fit(self, trusted: Snapshot) -> None:
        self.cross_fit(trusted)

    @torch.no_grad()
    def cross_fit(self, trusted: Snapshot) -> Tensor | None:
        """Fit, and `(batch, 2)` the numbers of these samples by probes `refitted` without them.

        None where labels are no class indices, where some are ignored, or where a class has
        samples in one of the parts alone.
        """
        read = read_labels(trusted, "TrustedProbe", several=self._told_apart(trusted))
        states = trusted.internal.detach().double()
        if isinstance(read, SeveralLabels):
            self._fit_several(states, read.given)
            return None
        counted = read.index >= 0  # negative ones are ignored, as by torch's cross-entropy
        whole = bool(counted.all())
        labels = read.index if whole else read.index[counted]
        states = states if whole else states[counted]
        if not len(labels):
            return None
        present, own = labels.unique(return_inverse=True)
        member = members(own, len(present), states)
        self.slope, offsets = of_members(states, own, member, self.shrinkage)
        self.offset = states.new_full((read.classes,), -torch.inf)
        self.offset[present] = offsets
        if self._held is not None:
            self.temperature = self._held
            return None
        # The parts take turns within each class. They are found here and not by scikit-learn,
        # whose splits live on the CPU: this runs after every update, on the states' device.
        part = turns(torch.argsort(own, stable=True), self.folds)
        scores = self._left_out(states, own, member, part)
        if scores is None:
            self.temperature = self._temperature(*self._left_out_of_few(states, own, member, part))
            return None
        self.temperature = self._temperature(scores, own)
        if not (whole and read.given):
            return None
        return self._pair(scores / self.temperature, own).to(trusted.internal.dtype)

    def _fit_several(self, states: Tensor, given: Tensor) -> None:
        slope, offset = label_discriminants(states, given, self.shrinkage)
        held = self._held
        temperature = self._shared_temperature(states, given) if held is None else held.amax()
        self.slope, self.temperature = slope, temperature.expand(len(offset)).clone()
        self.offset = offset / temperature + prior_log_odds(given)

    def _shared_temperature(self, states: Tensor, given: Tensor) -> Tensor:
        """The most likely T of several labels, by parts that did not fit the discriminants."""
        part = turns(torch.arange(len(states), device=states.device), self.folds)
        scores, priors, labels = [], [], []
        for held, rest in _splits(part, self.folds):
            slope, offset = label_discriminants(states[rest], given[rest], self.shrinkage)
            known = torch.isfinite(offset)
            scores.append((states[held] @ slope[:, known] + offset[known]).flatten())
            prior = prior_log_odds(given[rest])[known]
            priors.append(prior.expand(len(held), len(prior)).flatten())
            labels.append(given[held][:, known].flatten())
        if not sum(map(len, labels)):
            return states.new_ones(())
        odds, prior, truth = torch.cat(scores), torch.cat(priors), torch.cat(labels)

        def log_likelihood(t: Tensor) -> Tensor:
            gaps = odds / t + prior
            return nn.functional.logsigmoid(torch.where(truth, gaps, -gaps)).mean(1)

        return most_likely(log_likelihood, odds)

    def _left_out(self, states: Tensor, own: Tensor, member: Tensor, part: Tensor) -> Tensor | None:
        """`(n, classes)` scores of each sample by the other parts; None where one lacks a class."""
        held = part == torch.arange(self.folds, device=part.device).unsqueeze(1)
        rest = held.logical_not()
        if len(own) < self.folds or not bool((rest.to(member.dtype) @ member > 0).all()):
            return None
        size = FITTED_AT_ONCE // (len(states) * max(states.shape[1], member.shape[1]))
        if size < self.folds:  # work that outweighs the calls: each by its own rows alone
            scores = torch.zeros_like(member)
            for tested, rows in zip(held, rest, strict=True):
                slope, offset = of_members(states[rows], own[rows], member[rows], self.shrinkage)
                scores[tested] = states[tested] @ slope + offset
            return scores
        slope, offset = of_members(states, own, member, self.shrinkage, rest)
        scores = ((states @ slope + offset.unsqueeze(1)) * held.unsqueeze(2)).sum(0)
        return scores

    def _left_out_of_few(
        self, states: Tensor, own: Tensor, member: Tensor, part: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same and the classes, of those samples alone whose class the other parts have."""
        count = member.shape[1]
        found, truth = [states.new_zeros(0, count)], [own[:0]]
        for held, rest in _splits(part, self.folds):
            slope, offset = discriminant(states[rest], own[rest], count, self.shrinkage)
            fitted = torch.isfinite(offset)
            usable = held[fitted[own[held]]]
            scores = states.new_full((len(usable), count), IMPOSSIBLE)
            scores[:, fitted] = states[usable] @ slope + offset[fitted]
            found.append(scores)
            truth.append(own[usable])
        return torch.cat(found), torch.cat(truth)

    def _temperature(self, scores: Tensor, own: Tensor) -> Tensor:
        """The most likely T of scores by what was not fitted on these samples; 1 without any."""
        if not len(own):
            return scores.new_ones(())
        truth = own.unsqueeze(1)

        def log_likelihood(t: Tensor) -> Tensor:
            log_p = (scores / t).log_softmax(2)
            return log_p.gather(2, truth.expand(len(t), -1, -1)).squeeze(2).mean(1)

        return most_likely(log_likelihood, scores)


class _Classes:
    """Which classes have a trusted sample, as tables by class; the last row is of ignored ones.

    `columns` are those of the scores (that of a class without samples is any), `known` 1 where
    there are samples, `offsets` those of the classes that have some.
    """

    def __init__(self, offset: Tensor, key: tuple, evidence: Tensor) -> None:
        self.offset, self.key = offset, key
        present = torch.isfinite(offset)
        # Found by a sort, which unlike a mask keeps the host from waiting for the device.
        self.classes = present.logical_not().byte().argsort(stable=True)[: evidence.shape[1]]
        self.offsets = offset[self.classes]
        columns = (present.cumsum(0) - 1).clamp(min=0)
        self.columns = torch.cat([columns, columns[:1]])
        known = present.to(evidence.dtype)
        self.known = torch.cat([known, torch.zeros_like(known[:1])])

    def __reduce__(self) -> tuple:
        """Copies find their own, from their own numbers: None stands there."""
        return type(None), ()


def prior_log_odds(given: Tensor) -> Tensor:
    """log of the odds of each label `(labels,)`, with half a sample added on either side."""
    ones = given.double().sum(0)
    return ((ones + 0.5) / (len(given) - ones + 0.5)).log()


def _splits(part: Tensor, folds: int) -> list[tuple[Tensor, Tensor]]:
    """Places of (those held out, the rest) for every part that leaves something on both sides."""
    own = part == torch.arange(folds, device=part.device).unsqueeze(1)
    sizes = own.sum(1).tolist()
    held = own.nonzero()[:, 1].split(sizes)
    rest = own.logical_not().nonzero()[:, 1].split([len(part) - size for size in sizes])
    return [(a, b) for a, b in zip(held, rest, strict=True) if len(a) and len(b)]


def _drop_absent(_module: nn.Module, state: dict, prefix: str, *_: object) -> None:
    """Earlier states have columns of absent classes too."""
    if prefix + "slope" in state and prefix + "offset" in state:
        slope, present = state[prefix + "slope"], torch.isfinite(state[prefix + "offset"])
        if slope.shape[1] == len(present) and state[prefix + "temperature"].dim() == 0:
            state[prefix + "slope"] = slope[:, present]
