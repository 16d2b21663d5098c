"""The methods that `--method` names: they run, and the default does what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy import noisy, settings, write_npz

from deepteach.data.dataset import Data
from deepteach.errors import ConfigError
from deepteach.teachers.method import MethodContext
from deepteach.teachers.registry import METHODS, method
from deepteach.training.api import Result, run

DEMO = ("deep", "paper", "mwn", "uniform")
CONTEXT = MethodContext(classes=3, width=64, steps=100, counts=(30, 20, 10), samples=60)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Three blobs whose training labels are wrong in two of five rows."""
    return noisy(write_npz(tmp_path_factory.mktemp("data") / "toy.npz", train=300))


def go(data: Data, name: str, **changes: object) -> Result:
    return run(settings(data.name, method=name, epochs=8, **changes), data)


@pytest.mark.parametrize("name", DEMO)
def test_each_method_runs(name: str, data: Data) -> None:
    result = run(settings(data.name, method=name), data)
    assert result.summary["method"] == name
    assert len(result.trust.weight) == 300 and bool((result.trust.weight >= 0).all())
    assert float(result.trust.weight.sum()) == pytest.approx(300, rel=1e-4)
    parameters = result.summary["teacher_parameters"]
    assert (parameters == 0) == (name == "uniform")
    updates = sum(line["updates"] for line in result.metrics)
    assert (updates == 0) == (name == "uniform")


def test_deep_finds_the_wrong_labels_and_beats_plain_training(data: Data) -> None:
    result = go(data, "deep", baseline=True)
    plain = result.beside["uniform"]
    assert result.summary["noise_auroc"] > 0.95
    assert plain["noise_auroc"] == pytest.approx(0.5, abs=1e-6)
    assert result.summary["test_accuracy_last"] > 0.95
    assert result.summary["test_accuracy_last"] > plain["test_accuracy_last"] + 0.05
    wrong = data.y_clean != data.y_train
    weight = result.trust.weight
    assert float(weight[wrong].mean()) < 0.3 * float(weight[~wrong].mean())


def test_deep_leaves_right_labels_their_weight(tmp_path: Path) -> None:
    """Without noise nothing is learnt that hurts."""
    clean = noisy(write_npz(tmp_path / "toy.npz"), rate=0.0)
    assert go(clean, "deep").summary["test_accuracy_last"] > 0.95


def test_recipes_are_fresh_and_repeatable() -> None:
    for name in METHODS:
        torch.manual_seed(0)
        first = method(name, CONTEXT)
        torch.manual_seed(0)
        again = method(name, CONTEXT)
        assert first.teacher is not again.teacher
        states = first.teacher.state_dict(), again.teacher.state_dict()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_papers_teacher_has_its_size() -> None:
    """W_I, E (3 classes of 16), W_M and b."""
    parameters = method("paper", CONTEXT).teacher.parameters()
    assert sum(leaf.numel() for leaf in parameters) == 64 + 3 * 16 + 16 + 1


def test_meta_weight_net_is_as_published() -> None:
    """One input, 100 hidden units, one virtual step before every step."""
    chosen = method("mwn", CONTEXT)
    assert sum(leaf.numel() for leaf in chosen.teacher.parameters()) == 100 * 2 + 100 + 1
    assert (chosen.interval, chosen.window) == (1, 1)
    assert chosen.adjoint is not None and chosen.adjoint.before_step
    assert not chosen.teacher.reads_trusted


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown method 'mnw', did you mean 'mwn'"):
        method("mnw", CONTEXT)
    with pytest.raises(ConfigError, match="use one of deep, paper, uniform"):
        method("zzz", CONTEXT)
