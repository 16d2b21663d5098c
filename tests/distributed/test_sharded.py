"""Students that `fully_shard` has split over two ranks, against one process that holds them whole.

Two processes do all the jobs of `shards_work.py` in turn.
"""

from __future__ import annotations

from typing import Any

import pytest
import shards_work
import torch
from shards_work import METAS
from two_ranks import Answers, answers_of, gap, same


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Answers]:
    """What rank 0 and rank 1 answered."""
    return answers_of("shards_work.py", tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("name", METAS)
def test_meta_gradients(name: str, both: list[Answers]) -> None:
    torch.manual_seed(0)
    alone = METAS[name]()
    assert gap(both[0][name], alone) < (1e-7 if name == "differences" else 1e-10)
    assert same(both[0][name], both[1][name])


def test_training(both: list[Answers]) -> None:
    torch.manual_seed(0)
    assert gap(both[0]["trained"], shards_work.trained()) < 1e-10
    assert same(both[0]["trained"], both[1]["trained"])


@pytest.mark.parametrize("name", ["unused", "batchnorm", "running"])
def test_students_that_differ_by_rank(name: str, both: list[Answers]) -> None:
    """As on two ranks that hold them whole: some layers run on one rank only, statistics differ."""
    for answers in both:
        found = answers["ranks_apart"]
        assert gap(found[f"{name} True"], found[f"{name} False"]) < 1e-12


@pytest.mark.parametrize("kind", ["Stored", "Reversed"])
def test_a_resumed_window_has_the_same_bits(kind: str, both: list[Answers]) -> None:
    for answers in both:
        found = answers["resumed"]
        assert same(found[f"again {kind}"], found[f"straight {kind}"])


def test_steps_of_another_rank_are_refused(both: list[Answers]) -> None:
    for rank, answers in enumerate(both):
        assert f"is not rank {rank}'s part of it" in answers["foreign"]


def test_a_rank_holds_its_shard_of_every_vector(both: list[Answers]) -> None:
    """Parameters, gradients no more, momentum, and the states of the window."""
    for answers in both:
        found = answers["memory"]
        # theta, the momentum and theta at the start of the window: half of each.
        assert found["Reversed 4"] < 3 * 0.5 + 0.1
        # Each step of a longer window adds half of theta and half of the momentum.
        assert found["Stored 8"] - found["Stored 4"] == pytest.approx(4 * 2 * 0.5, rel=0.05)
        # The last step hands its pass to the update: theta and its gradient are whole till then.
        assert found["Stored 8, before the update"] - found["Stored 8"] < 2 + 0.1
        # theta, the momentum, and both of the last step, which the coach remembers.
        assert found["Stored 8, after it"] < 4 * 0.5 + 0.1


def test_traffic(both: list[Answers]) -> None:
    """Shards of P / 2 are given to a gather, and P to what is summed."""
    for answers in both:
        found, size = answers["traffic"], answers["traffic"]["size"]
        step, update = found["step"], found["update"]
        assert step["parameters"] == size / 2 and step["gradient"] - size < 100
        # theta for the trusted batch and for the earliest step, and the direction of either step
        assert update["parameters"] == 4 * size / 2
        assert update["replays"] == update["curvature"] == size


def test_what_one_rank_alone_moved(both: list[Answers]) -> None:
    for answers in both:
        [text] = answers["moved"]
        assert "goes back over 2 of 4 steps" in text


def test_what_is_not_finite_on_one_rank_ends_all(both: list[Answers]) -> None:
    for text, unchanged in (answers["poisoned"] for answers in both):
        assert text.startswith("NumericError") and "not finite" in text and unchanged


REFUSED = {
    "precision": "leave mp_policy out",
    "offload": "leave offload_policy out",
    "first": "use fully_shard (FSDP2)",
    "replicas": "split over one dimension of ranks",
    "partly": "call fully_shard on the whole module",
    "unrolled": "Unrolled needs parameters that are whole on every rank",
    "compiled": "without torch.compile",
    "others": "is split over 2 processes, but 1 train together",
    "run": "train by a loop of your own with dt.Coach",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, both: list[Answers]) -> None:
    for answers in both:
        text = answers["refused"][name]
        assert text.startswith("ConfigError") and "\n" not in text
        assert REFUSED[name] in text


def test_a_lost_rank(both: list[Answers]) -> None:
    text: Any = both[0]["lost"]
    assert text.startswith("RankError: rank 0 has lost the other ranks") and "\n" not in text
