"""skorch's classifier, taught: beside a plain loop around a Coach on the same batches."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Checkpoint, LoadInitState
from skorch.dataset import Dataset
from tiny_hosts import apart, tensors
from torch import Tensor, nn
from torch.utils.data import DataLoader

import deepteach as dt
from deepteach.integrations.skorch import TeachNet

INTERVAL, WINDOW, SIZE = 3, 2, 8


def points(count: int, seed: int = 0, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = (rng.normal(size=(count, 4)) + 3 * np.eye(4)[y]).astype(np.float32)
    return x, np.where(rng.random(count) < noise, (y + 1) % 3, y)


X, Y = points(5 * SIZE, noise=0.4)
TRUSTED = points(18, seed=1)


class Own(nn.Module):
    """Three classes; probabilities, as skorch's default criterion wants them, or logits."""

    def __init__(self, probabilities: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2), nn.Tanh())
        self.head, self.probabilities = nn.Linear(6, 3), probabilities

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(self.net(x))
        return z.softmax(1) if self.probabilities else z


def teacher() -> dt.Teacher:
    torch.manual_seed(5)
    return dt.Teacher([dt.TrustedProbe(), dt.Loss()])


class Watched(TeachNet):
    """Keeps the batches that it trains on, and where the random generator stood before each."""

    def train_step_single(self, batch: Any, **more: Any) -> Any:
        self.__dict__.setdefault("seen_", []).append((*batch, torch.get_rng_state()))
        return super().train_step_single(batch, **more)


def net(**changes: Any) -> Watched:
    usual: dict[str, Any] = {
        "trusted": TRUSTED,
        "teacher": teacher(),
        "interval": INTERVAL,
        "window": WINDOW,
        "trusted_batch_size": 12,
        "max_epochs": 2,
        "batch_size": SIZE,
        "lr": 0.1,
        "optimizer__momentum": 0.9,
        "train_split": None,
        "verbose": 0,
    }
    return Watched(changes.pop("module", Own), **{**usual, **changes})


def of_probabilities(p: Tensor, y: Tensor) -> Tensor:
    return nn.functional.nll_loss((p + torch.finfo(p.dtype).eps).log(), y, reduction="none")


def plain_loop(module: nn.Module, seen: list[Any], **options: Any) -> dt.Coach:
    """A loop of one's own on the batches that the net saw."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    coach = dt.Coach(
        *(dt.Student(module, "head"), optimizer, teacher()),
        **{"interval": INTERVAL, "window": WINDOW, **options},
    )
    valid = DataLoader(Dataset(*TRUSTED), 12, shuffle=True)
    coach.trust(valid)
    for x, y, generator in seen:
        torch.set_rng_state(generator)
        optimizer.zero_grad()
        coach.loss(x, y).backward()
        optimizer.step()
        coach.update(valid)
    return coach


@pytest.mark.parametrize("probabilities", [True, False])
def test_a_fit_ends_with_the_teacher_of_a_plain_loop(probabilities: bool) -> None:
    criterion = nn.NLLLoss if probabilities else nn.CrossEntropyLoss
    found = net(criterion=criterion, module__probabilities=probabilities).fit(X, Y)
    module = Own(probabilities)
    options = {"loss": of_probabilities} if probabilities else {}
    coach = plain_loop(module, found.__dict__["seen_"], **options)
    assert found.coach_.steps == 10
    assert apart(tensors(found.coach_.teacher), tensors(teacher()))
    assert not apart(tensors(found.coach_.teacher), tensors(coach.teacher))
    assert not apart(tensors(found.module_), tensors(module))
    last: Any = found.history[-1]
    assert {"effective_sample_size", "trusted_loss", "trusted_accuracy"} <= set(last)
    assert found.predict(X).shape == (40,) and found.score(*TRUSTED) > 0.5


@pytest.mark.parametrize("probabilities", [True, False])
def test_a_compiled_net_is_taught_as_another(probabilities: bool) -> None:
    """skorch compiles the criterion, too."""
    torch._dynamo.reset()
    criterion = nn.NLLLoss if probabilities else nn.CrossEntropyLoss
    settings = {"criterion": criterion, "module__probabilities": probabilities}
    want, found = (
        tensors(net(**settings, **more).fit(X, Y).coach_.teacher)
        for more in ({}, {"compile": True, "compile__backend": "aot_eager"})
    )
    assert all(torch.allclose(found[name], leaf, atol=1e-4) for name, leaf in want.items())


@pytest.mark.parametrize("kind", ["copy", "pickle"])
def test_a_copy_goes_on_to_the_same_bits(kind: str) -> None:
    """Made within a window; the copy has hooks of its own, and the first one keeps its own."""
    first = net(max_epochs=1).fit(X, Y)
    before = torch.get_rng_state()
    other = copy.deepcopy(first) if kind == "copy" else pickle.loads(pickle.dumps(first))  # noqa: S301
    assert other.coach_ is not first.coach_ and other.coach_.optimizer is other.optimizer_
    for each in (first, other):
        torch.set_rng_state(before)
        each.partial_fit(X, Y)
        assert each.coach_.steps == 10
    assert not apart(tensors(first.coach_.teacher), tensors(other.coach_.teacher))
    assert not apart(tensors(first.module_), tensors(other.module_))


def test_fit_and_clone_begin_anew() -> None:
    given = teacher()
    first = net(teacher=given)
    ends = []
    again: Any = clone(first)
    for found in (first, first, again):
        torch.manual_seed(0)
        ends.append(tensors(found.fit(X, Y).coach_.teacher))
        assert found.coach_.steps == 10
    assert not apart(ends[0], ends[1]) and not apart(ends[0], ends[2])
    assert not apart(tensors(given), tensors(teacher()))


def test_checkpoints_hold_the_coach(tmp_path: Path) -> None:
    def saving() -> Checkpoint:
        every: Any = None
        return Checkpoint(dirname=str(tmp_path), f_coach="coach.pt", monitor=every)

    torch.manual_seed(0)
    first = net(max_epochs=1, callbacks=[saving()]).fit(X, Y)
    assert (tmp_path / "coach.pt").is_file()
    before = torch.get_rng_state()
    second = net(max_epochs=1, callbacks=[LoadInitState(saving())]).initialize()
    torch.set_rng_state(before)
    second.partial_fit(X, Y)
    torch.set_rng_state(before)
    first.partial_fit(X, Y)
    assert second.coach_.steps == 10
    assert not apart(tensors(first.coach_.teacher), tensors(second.coach_.teacher))
    assert not apart(tensors(first.module_), tensors(second.module_))


def test_a_grid_of_settings() -> None:
    """Clones are fitted in folds; how often a short run is taught follows from its length."""
    grid = {"lr": [0.01, 0.1], "teacher": [None, dt.Teacher([dt.Loss()])]}
    told: Any = "raise"
    search = GridSearchCV(net(interval=None, window=None), grid, cv=2, error_score=told)
    search.fit(X, Y)
    best = search.best_estimator_
    assert best.coach_.interval == 2 and best.coach_.clock.total == 10
    assert len(search.cv_results_["params"]) == 4


class Scalar(nn.Module):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(z, y)


def test_what_is_refused() -> None:
    with pytest.raises(dt.ConfigError, match=r"give trusted=\(X, y\)"):
        net(trusted=None).initialize()
    with pytest.raises(dt.ConfigError, match="the criterion Scalar has no reduction"):
        net(criterion=Scalar).initialize()
    own = {"loss": of_probabilities}
    assert net(criterion=Scalar, coach_options=own).initialize().coach_.steps == 0
    with pytest.raises(dt.ConfigError, match="fit was given scale for the module"):
        net().fit(X, Y, scale=2)


def test_without_the_library_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deepteach.integrations.skorch")
    monkeypatch.setitem(sys.modules, "skorch", None)
    with pytest.raises(ImportError, match=r"pip install 'deepteach\[skorch"):
        import deepteach.integrations.skorch  # noqa: F401


@pytest.mark.parametrize("trusted", [TRUSTED[0], torch.tensor(TRUSTED[0]), {"x": TRUSTED[0]}])
def test_trusted_samples_without_labels(trusted: Any) -> None:
    with pytest.raises(dt.ConfigError, match=r"trusted has no labels: give trusted=\(X, y\)"):
        net(trusted=trusted).fit(X, Y)


def test_a_class_that_the_module_does_not_have() -> None:
    with pytest.raises(
        dt.DataError, match="labels go from .* to 3, and the module returns 3 classes"
    ):
        net().fit(X, Y + 1)
