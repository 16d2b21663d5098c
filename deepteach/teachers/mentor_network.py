"""MentorNet's network, learned once from samples whose labels were checked.

Jiang et al., ICML 2018. Symbols: l loss; d = l - m, m the moving average of the batch's
p-th loss percentile; e percent of training done, 0 to 99; v weight in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepteach.core.derivatives.recurrent import own_recurrence
from deepteach.errors import DataError
from deepteach.rng import stream


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
        with own_recurrence([self.lstm]):  # cuDNN wants weights in one piece, and warns
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

    MentorNet DD of Jiang et al., ICML 2018: `MentorNet("data-driven").adopt(network)`.

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
