"""Two ranks against one, and against each other; what happens when one of them fails.

Two processes do all the jobs of `ranks_work.py` in turn. Whole runs with ranks that are
killed, stopped and poisoned are in `test_faults.py`, by the short form of `make soak`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks_work
import torch
from ranks_work import ADJOINTS, INTERVAL, JOBS, SAMPLES, SIZE, STEPS
from safetensors.torch import load_file
from toy import Probe, dropout, noisy, write_npz
from two_ranks import Answers, answers_of, free_port, gap, same

import deepteach as dt
from deepteach.distributed.collectives import Ranks
from deepteach.runs.checkpoint import Store
from deepteach.runs.serialization import from_bytes, to_bytes
from deepteach.training.api import run
from deepteach.training.config import make, read
from deepteach.training.signals import Interrupts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    write_npz(path / "toy.npz", train=80, valid=24, test=30)
    return path


@pytest.fixture(scope="module")
def both(folder: Path) -> list[Answers]:
    """What rank 0 and rank 1 answered."""
    return answers_of("ranks_work.py", folder)


@pytest.fixture
def alone(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return JOBS[request.param]()


def compared(answer: Answers) -> Answers:
    return {key: value for key, value in answer.items() if key != "seen"}


# Two ranks against one.


@pytest.mark.parametrize(
    ("alone", "limit"), [("float64", 1e-12), ("float32", 1e-5)], indirect=["alone"]
)
def test_two_hundred_steps(alone: Answers, limit: float, both: list[Answers], request: Any) -> None:
    """Student, teacher, running figures; the last batch of a round is spread as 2 and 1."""
    name = request.node.callspec.params["alone"]
    one, two = compared(alone), [compared(answers[name]) for answers in both]
    assert one["clock"][0] == STEPS and one["record"][1] > 0 and STEPS % INTERVAL == 0
    assert gap(two[0], one) < limit
    assert gap(two[0]["first"], one["first"]) < 1e-6
    assert same(*two)


@pytest.mark.parametrize("alone", ["default method"], indirect=True)
def test_the_default_method(alone: Answers, both: list[Answers]) -> None:
    """No step of its teacher is made of rounding, which two processes do not share with one."""
    assert gap(both[0]["default method"], alone) < 1e-3
    assert same(both[0]["default method"], both[1]["default method"])


@pytest.mark.parametrize("alone", ADJOINTS, indirect=True)
def test_meta_gradients(alone: Answers, both: list[Answers], request: Any) -> None:
    """Every adjoint and option; finite differences divide the rounding by their step."""
    name = request.node.callspec.params["alone"]
    assert gap(both[0][name], alone) < (1e-7 if name == "differences" else 1e-11)
    assert same(both[0][name], both[1][name])


def test_every_sample_once_a_round(both: list[Answers]) -> None:
    parts = [answers["float64"]["seen"] for answers in both]
    rounds = -(-SAMPLES // SIZE)
    rows = torch.cat([part for own in parts for part in own])
    assert rows.sort().values.tolist() == list(range(SAMPLES))
    assert [len(own[rounds - 1]) for own in parts] == [2, 1]


@pytest.mark.parametrize("name", ["batchnorm", "dropout", "unused", "running"])
def test_ranks_stay_equal_whatever_the_student(name: str, both: list[Answers]) -> None:
    """Statistics of a part of the batch, own draws, a layer that ran on one rank only."""
    assert same(both[0][name], both[1][name])


@pytest.mark.parametrize("alone", ["running"], indirect=True)
def test_running_means_are_those_of_the_whole_batch(alone: Answers, both: list[Answers]) -> None:
    assert gap(both[0]["running"], alone) < 1e-12


@pytest.mark.parametrize("alone", ["lazily"], indirect=True)
def test_samples_read_on_access(alone: Answers, both: list[Answers]) -> None:
    """Each rank reads its own part of every batch, and of the samples that are weighed."""
    one, two = dict(alone), [dict(answers["lazily"]) for answers in both]
    every, parts = one.pop("reads"), [answer.pop("reads") for answer in two]
    assert same(*two)
    assert torch.equal(every.sort().values, torch.cat(parts).sort().values)
    # The trusted samples that ride along, two a batch, are the last of it, so of the last rank.
    assert len(every) == 3 * 52 and max(map(len, parts)) <= 3 * 26 + 14


@pytest.mark.parametrize("alone", ["kept"], indirect=True)
def test_the_ledger_is_of_all_ranks(alone: Answers, both: list[Answers]) -> None:
    one, two = alone, [answers["kept"] for answers in both]
    assert same(*two) and len(one["index"]) > 20
    for name in ("index", "visits"):
        assert torch.equal(one[name], two[0][name])
    assert gap(two[0]["weights"], one["weights"]) < 1e-12


def test_traffic(both: list[Answers]) -> None:
    """A taught run sends what a plain one sends, and less than three students an update.

    One more for each step that is looked at: the first, the fourth, the sixteenth, ...
    """
    for answers in both:
        found = answers["traffic"]
        plain, taught, student = found["Uniform"], found["Teacher"], found["student"]
        updates, steps, looks = 3, 9, 2
        assert plain["gradient"] == steps * student
        vectors = taught["replays"] + taught["curvature"] + taught["teacher"]
        assert vectors == updates * (2 * student + found["teacher"]) + looks * student
        assert sum(taught.values()) - sum(plain.values()) < updates * 3 * student
        assert sum(plain.values()) - plain["gradient"] < 0.02 * plain["gradient"]


# Faults.


def test_one_unit_in_the_last_place_is_found(both: list[Answers]) -> None:
    for text, step in (answers["diverging"] for answers in both):
        assert "rank 1 no longer holds the parameters of rank 0 (after step 100)" in text
        assert text.startswith("NumericError") and step == 99


@pytest.mark.parametrize("site", ["data", "gradient"])
def test_what_is_not_finite_on_one_rank_ends_all(site: str, both: list[Answers]) -> None:
    for text, unchanged in (answers[site] for answers in both):
        assert text.startswith("NumericError") and "not finite" in text and unchanged


def test_refusals(both: list[Answers]) -> None:
    for answers in both:
        found = dict(answers["refused"])
        assert found.pop("empty").startswith("DataError: this rank's part of the batch is empty")
        assert len(found) == 7
        for kind, text in found.items():
            assert f"ConfigError: {kind} weighs a sample by the others" in text
            assert text.endswith("use one process")


def test_a_lost_rank(both: list[Answers]) -> None:
    text = both[0]["lost"]
    assert text.startswith("RankError: rank 0 has lost the other ranks") and "\n" not in text
    assert text.endswith("restart the same command with --resume")


def test_a_slow_disk_is_no_dead_rank(both: list[Answers]) -> None:
    """Rank 0 says that it is still writing; where that fails, all ranks end with its error."""
    for answers in both:
        words, text = answers["slow disk"]
        assert 3 <= words <= 8 and text == "StorageError: the disk is full"


# The training loop.


def test_a_signal_to_one_rank(both: list[Answers], folder: Path) -> None:
    """Both end the same step with 143; resumed, both end with the bits of the straight run."""
    for answers in both:
        found = answers["runs"]
        assert found["code"] == 143
        # The rank that was told tells the other one within the next step.
        assert found["said"][0] == "resumed at step 8 of 15"
        assert same(found["resumed"], found["straight"])
    assert same(both[0]["runs"]["straight"], both[1]["runs"]["straight"])
    averages = [average for answers in both for average in answers["runs"]["averages"]]
    assert len(averages) == 4 and all(same(averages[0], other) for other in averages[1:])
    for name in ("student.safetensors", "weights.csv", "baseline/weights.csv"):
        left, right = ((folder / run / name).read_bytes() for run in ("straight", "stopped"))
        assert left == right


def test_what_the_loop_refuses(both: list[Answers]) -> None:
    for answers in both:
        found = answers["runs"]
        assert (
            "the smallest batch of an epoch has 3 samples, but 2 ranks need 2 each"
            in (found["thin"])
        )
        assert "rank 1 was given other settings than rank 0" in found["settings"]
        assert found["taken"].startswith("ConfigError: the output folder")


def test_another_number_of_processes_goes_on(
    both: list[Answers], folder: Path, tmp_path: Path
) -> None:
    """It is told; the window begins anew."""
    out = tmp_path / "one"
    shutil.copytree(folder / "one", out)
    found = Store(out / "checkpoints").newest()
    assert found is not None and found.meta["processes"] == 2
    assert len(found.tree["others"]) == 1
    torch.manual_seed(7)
    teacher = dt.Teacher(
        [dt.TrustedProbe(), dt.Internal(12), dt.Label(3, 4), dt.Surface()], hidden_layers=1
    )
    config = make({**read(out / "config.yaml"), "out": str(out)})
    probe = Probe()
    ended = run(
        config, noisy(config.data), module=dropout(3), teacher=teacher, resume=True,
        watch=probe.watch,
    )  # fmt: skip
    assert "not bit-reproducible: processes changed since the checkpoint" in probe.said
    assert ended.summary["steps"] == 15


def test_torchrun(tmp_path: Path) -> None:
    """The command line of a user, once: two processes give what one gives."""
    data = write_npz(tmp_path / "toy.npz", train=203, valid=60, test=100)
    flags = ["--data", data, "--student", "mlp", "--threads", "1", "--epochs", "3"]
    flags += ["--noise.kind", "flip", "--noise.rate", "0.4", "--batch_size", "16"]
    flags += ["--logger", "mine:told"]
    (tmp_path / "mine.py").write_text("def told(line): print('told of', line['epoch'])\n")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        + [f"--master_port={free_port()}", "-m", "deepteach", "train", *flags, "--out", "two"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("run: two") == 1, "rank 0 alone has something to say"
    there = tmp_path / "two"
    assert json.loads((there / "environment.json").read_text())["processes"] == 2
    said = [line for line in done.stdout.splitlines() if line.startswith("told of")]
    assert said == 2 * [f"told of {epoch}" for epoch in (1, 2, 3)]  # of the baseline, too
    config = make({**read(there / "config.yaml"), "out": None, "logger": []})
    one = run(config, noisy(data))
    summary = json.loads((there / "summary.json").read_text())
    assert summary["steps"] == one.summary["steps"] == 3 * 13
    # Before the probe's first fit the teacher's gradient is rounding, which Adam makes a step.
    assert gap(load_file(there / "student.safetensors"), ranks_work.tensors(one.model)) < 2e-2
    assert summary["test_accuracy_last"] == pytest.approx(
        one.summary["test_accuracy_last"], abs=0.02
    )


# Parts.


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_of_a_batch(count: int) -> None:
    for size in range(1, 12):
        rows = torch.arange(size)
        parts = [Ranks(rank, count).part(rows) for rank in range(count)]
        assert torch.equal(torch.cat(parts), rows)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_tree_on_its_way() -> None:
    tree = {"a": [torch.arange(3), None, (1.5, float("inf"))], "b": {0: torch.ones(2, 2).half()}}
    back = from_bytes(to_bytes(tree))
    assert list(back) == ["a", "b"] and back["a"][1:] == [None, (1.5, float("inf"))]
    assert same(back["a"][0], tree["a"][0]) and same(back["b"][0], tree["b"][0])


def test_a_signal_passed_on_by_a_launcher_is_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Left(BaseException):
        pass

    def leave(code: int) -> None:
        raise Left(code)

    now = [100.0]
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr("deepteach.training.signals.time.monotonic", lambda: now[0])
    relayed = Interrupts(relays=True)
    relayed.handle(2, None)
    relayed.handle(2, None)
    assert relayed.received == 2
    now[0] += 3.0
    with pytest.raises(Left, match="130"):
        relayed.handle(2, None)
    plain = Interrupts()
    plain.handle(15, None)
    with pytest.raises(Left, match="143"):
        plain.handle(15, None)
