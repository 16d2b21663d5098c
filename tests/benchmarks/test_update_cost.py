"""`deepteach bench` runs and writes its columns; what it measures is no test's business."""

from __future__ import annotations

import copy
import csv
import importlib.util
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from toy import command

import deepteach as dt
from deepteach.benchmarks.method_cost import measure_methods, method_table
from deepteach.benchmarks.peers import PEERS, meta_weight_net
from deepteach.benchmarks.plan import (
    BENCH_STUDENTS,
    HANDWRITTEN,
    PROBED,
    PUBLISHED,
    STRATEGIES,
    TAUGHT,
    Plan,
    plans,
)
from deepteach.benchmarks.records import append
from deepteach.benchmarks.update_cost import UpdateCost
from deepteach.benchmarks.work import Work
from deepteach.teachers.meta_weight_net import MetaWeightNet


def test_quick_bench_writes_every_column(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    call, out = command(capsys), tmp_path / "deep" / "bench.csv"
    options = ("bench", "--student", "mlp,mlp-64", "--batch_size", 4, "--quick", "--out", out)
    answer = call(*options)
    assert answer.code == 0, answer.err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [field.name for field in fields(UpdateCost)]
    here = [name for name in PEERS if importlib.util.find_spec(name) is not None]
    want = ["plain", "taught steps", *STRATEGIES, *here]
    want += [TAUGHT + PROBED, "Reversed" + PROBED, PUBLISHED, HANDWRITTEN]
    assert [(row["student"], row["row"]) for row in rows] == [
        *(("mlp", name) for name in want),
        *(("mlp-64", name) for name in want),
    ]
    for row in rows:
        assert 0 < float(row["low"]) <= float(row["ratio"]) <= float(row["high"])
        assert row["torch"] == torch.__version__ and row["batch"] == "4"
        assert bool(float(row["units"])) == (row["row"].split(",")[0] in (*STRATEGIES, *here))
    plain = rows[0]
    assert 50 < float(plain["peak_mib"]) < 2000 and not rows[len(want)]["peak_mib"]
    for name in set(PEERS) - set(here):
        assert f"{name} is not installed" in answer.out
    again = call(*options)
    assert again.code == 2 and "exists" in again.err
    whole = out.read_text().splitlines(keepends=True)
    out.write_text("".join(whole[:-1]))  # as if it had been stopped before its last row
    assert call(*options, "--resume").code == 0
    resumed = out.read_text().splitlines(keepends=True)
    assert resumed[:-1] == whole[:-1] and len(resumed) == len(whole)
    other = call("bench", "--student", "mlp-64,mlp", "--batch_size", 8, *options[5:], "--resume")
    assert other.code == 2 and "other settings" in other.err
    fewer = call("bench", "--student", "mlp", *options[3:], "--resume")
    assert fewer.code == 2 and "are of 'mlp-64' too" in fewer.err
    out.write_text("a,b\n1,2\n")
    assert "holds no rows of a bench" in call(*options, "--resume").err


def test_costs_of_methods(tmp_path: Path) -> None:
    few = ("uniform", "deep", "cleanlab")
    found = measure_methods(2, names=few, epochs=1)
    assert [cost.method for cost in found] == ["deep", "cleanlab"]
    deep, pruned = found
    assert deep.trainings == 1 and pruned.trainings == 6  # five folds and the last
    for cost in found:
        assert 0 < cost.low <= cost.ratio <= cost.high
        assert cost.whole == cost.ratio * cost.trainings
    for cost in found:
        append(cost, tmp_path / "costs.csv")
    lines = (tmp_path / "costs.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[1].startswith("deep,")
    table = method_table(found, "costs")
    assert [len(cells) for cells in (table.columns, *table.rows)] == [5, 5, 5]


def test_costs_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepteach.benchmarks.method_cost.METHODS", ("uniform", "probe"))
    monkeypatch.setattr("deepteach.benchmarks.method_cost.EPOCHS", 1)
    out = tmp_path / "c.csv"
    answer = command(capsys)("bench", "--methods", "--quick", "--out", out)
    assert answer.code == 0, answer.err
    assert out.read_text().splitlines()[1].startswith("probe,") and "probe" in answer.out


@pytest.mark.parametrize(
    "flag, value, told",
    [
        ("--repeats", 0, "--repeats must be 1 or more"),
        ("--batch_size", 1, "bench needs"),
        ("--student", "mlp,mlp", "each once"),
        ("--student", ",", "each once"),
    ],
)
def test_bad_plans_are_refused(
    flag: str, value: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    answer = command(capsys)("bench", flag, value, "--out", tmp_path / "b.csv")
    assert answer.code == 2 and told in answer.err


def test_students_of_the_bench() -> None:
    """Each with its own inputs and batch; the small ones are what the documents say."""
    found = plans(",".join(BENCH_STUDENTS), None, 2)
    assert [(p.student, p.batch, p.repeats) for p in found] == [
        *(("mlp-64", 64, 40), ("resnet8-16", 64, 2), ("resnet32", 32, 2)),
    ]
    assert {plan.batch for plan in plans("mlp-64,cnn", 8, 1)} == {8}
    work = Work(replace(found[0], batch=4))
    assert sum(leaf.numel() for leaf in work.module.parameters()) == 64 * 64 + 64 + 64 * 10 + 10
    assert Work(replace(found[1], batch=2)).batches[0][0].shape == (2, 3, 16, 16)


def test_the_loop_by_hand_does_what_a_lookahead_does() -> None:
    """Three steps: the same students and the same networks, so that the same work is timed."""
    plan = Plan(student="mlp-64", batch=8, interval=3)
    ours, theirs = Work(plan), Work(plan)
    net = MetaWeightNet()
    by_hand = nn.Sequential(*copy.deepcopy(net.score), nn.Sigmoid())
    coach = dt.Coach(
        *(dt.Student(ours.module, "2"), ours.optimizer, net),
        interval=1,
        window=1,
        adjoint=dt.Lookahead(),
        teacher_optimizer=torch.optim.Adam(net.parameters(), 1e-3),
    )
    coach.trust(ours.trusted)
    for x, y in ours.rows():
        ours.optimizer.zero_grad()
        coach.loss(x, y).backward()
        ours.optimizer.step()
        coach.update(ours.trusted)
    start = copy.deepcopy(by_hand)
    rows = list(theirs.rows())
    list(meta_weight_net(theirs.module, theirs.optimizer, rows, theirs.trusted, by_hand))
    for one, other in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for one, other, first in zip(
        net.parameters(), by_hand.parameters(), start.parameters(), strict=True
    ):
        assert not torch.equal(other, first)
        torch.testing.assert_close(one, other, rtol=0, atol=3e-4)


@pytest.mark.parametrize("row", [*STRATEGIES, *PEERS, "Reversed" + PROBED, HANDWRITTEN])
def test_every_row_trains_the_student_by_the_same_steps(row: str) -> None:
    """K optimizer steps, whichever way the update is found; weights start nearly equal."""
    if row in PEERS and importlib.util.find_spec(row) is None:
        row = "Unrolled"  # an optional package: its row is not measured either
    plan = Plan(student="mlp", batch=4, interval=6, windows=(2,))
    work, plain = Work(plan), Work(plan)
    cycle = work.cycle(row, 2)
    before = [leaf.detach().clone() for leaf in work.module.parameters()]
    assert len(list(cycle())) == len(list(plain.plain())) == plan.interval
    for leaf, other, start in zip(
        work.module.parameters(), plain.module.parameters(), before, strict=True
    ):
        assert isinstance(leaf, nn.Parameter) and leaf.is_leaf
        moved = float((other.detach() - start).norm())
        # torchopt's own momentum starts at zero: two of six steps are shorter.
        assert float((leaf.detach() - other.detach()).norm()) < 0.7 * moved
