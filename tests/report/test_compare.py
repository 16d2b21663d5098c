"""Tables: the statistics against hand computation, and what may be paired at all."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from fake_run import make_run
from rich.console import Console
from scipy import stats

from deepteach.errors import DataError
from deepteach.report.compare import (
    MethodRuns,
    compare,
    method_result,
    method_results,
    results_table,
)
from deepteach.report.stats import holm, paired_gains
from deepteach.report.table import TextTable
from deepteach.runs.reader import Run, open_run

UNIFORM = [0.80, 0.81, 0.83]
DEEP = [0.90, 0.92, 0.91]
FOCAL = [0.80, 0.83, 0.82]


def _runs(folder: Path, method: str, values: list[float], **settings: object) -> list[Run]:
    paths = [
        make_run(folder / f"{method}{seed}", method=method, seed=seed, selected=value,
                 samples=False, n=10, **settings)  # pyright: ignore
        for seed, value in enumerate(values)
    ]  # fmt: skip
    return [open_run(path) for path in paths]


def _methods(runs: list[Run]) -> dict[str, MethodRuns]:
    (setting,) = compare(runs).settings
    return {found.method: found for found in setting.methods}


def test_paired_interval_by_hand() -> None:
    # d = 1, 2, 6: mean 3, s = sqrt(7), t(.975, 2) = 4.302653
    gain = paired_gains({"deep": [1.0, 2.0, 6.0]})["deep"]
    half = 4.302653 * 7**0.5 / 3**0.5
    assert gain.mean == pytest.approx(3)
    assert gain.std == pytest.approx(7**0.5)
    assert (gain.low, gain.high) == pytest.approx((3 - half, 3 + half), rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_p_values_equal_scipy(n: int) -> None:
    a, b = np.random.default_rng(n).normal(size=(2, n))
    gain = paired_gains({"deep": a - b})["deep"]
    assert gain.p == pytest.approx(np.asarray(stats.ttest_rel(a, b))[1])
    assert gain.p_wilcoxon == pytest.approx(np.asarray(stats.wilcoxon(np.round(a - b, 9)))[1])


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
def test_the_interval_is_that_of_the_formula(n: int, scale: float) -> None:
    d = scale * np.random.default_rng(n).standard_normal(n) + 0.3
    gain = paired_gains({"deep": d.tolist()})["deep"]
    half = stats.t.ppf(0.975, n - 1) * d.std(ddof=1) / n**0.5
    p = 2 * stats.t.sf(abs(d.mean()) / (d.std(ddof=1) / n**0.5), n - 1)
    assert gain.low == pytest.approx(d.mean() - half, rel=1e-12, abs=1e-12)
    assert gain.high == pytest.approx(d.mean() + half, rel=1e-12, abs=1e-12)
    assert gain.p == pytest.approx(p, rel=1e-12)


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made monotone
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_verdicts() -> None:
    gains = paired_gains(
        {
            "better": [5.0, 5.1, 4.9],
            "worse": [-5.0, -5.1, -4.9],
            "within": [1.0, -0.5, 0.6],
            "unsure": [1.0, 0.1, 1.2],
            "one": [9.0],
            "equal": [1.0, 1.0, 1.0],
            "zero": [0.0, 0.0],
        }
    )
    assert {name: gain.verdict for name, gain in gains.items()} == {
        "better": "better",
        "worse": "worse",
        "within": "no difference shown",
        "unsure": "better here, not significant",
        "one": "one seed: no interval",
        "equal": "the same difference in every seed",
        "zero": "no difference shown",
    }


def test_compare_pairs_by_seed(tmp_path: Path) -> None:
    runs = _runs(tmp_path, "uniform", UNIFORM) + _runs(tmp_path, "focal", FOCAL)
    runs += reversed(_runs(tmp_path, "deep", DEEP))
    cells = _methods(runs)
    assert list(cells) == ["uniform", "deep", "focal"]
    assert list(cells["deep"].accuracy) == ["0", "1", "2"]
    d = 100 * (np.array(DEEP) - UNIFORM)
    gain, other = cells["deep"].gain, cells["focal"].gain
    assert gain is not None and other is not None and gain.p and other.p
    assert (gain.n, gain.mean, gain.std) == pytest.approx((3, d.mean(), d.std(ddof=1)))
    assert [gain.p_holm, other.p_holm] == pytest.approx(holm([gain.p, other.p]))
    assert "no difference shown" in compare(runs).to_text()


def test_nested_baseline_counts_once(tmp_path: Path) -> None:
    runs = _runs(tmp_path, "deep", DEEP) + _runs(tmp_path, "mwn", FOCAL)
    for run in runs:
        seed = run.summary["seed"]
        make_run(run.path / "baseline", method="uniform", seed=seed, selected=UNIFORM[seed])
    cells = _methods([open_run(run.path) for run in runs])
    assert list(cells["uniform"].accuracy.values()) == pytest.approx([80, 81, 83])
    assert cells["mwn"].gain is not None and cells["mwn"].gain.n == 3


@pytest.mark.parametrize("change", [{"epochs": 7}, {"batch_size": 64}, {"lr": 0.2},
                                    {"student": "mlp"}, {"augment": True}])  # fmt: skip
def test_other_schedules_are_not_paired(tmp_path: Path, change: dict[str, object]) -> None:
    runs = _runs(tmp_path, "deep", DEEP) + _runs(tmp_path, "uniform", UNIFORM, **change)
    comparison = compare(runs)
    assert len(comparison.settings) == 2
    assert all(found.gain is None for s in comparison.settings for found in s.methods)
    assert f"differ in {next(iter(change))}: runs of different" in comparison.to_text()
    assert "no uniform baseline on this schedule" in comparison.to_text()


def test_where_and_how_a_run_ran_keeps_none_apart(tmp_path: Path) -> None:
    """Graphs that are kept cost memory and save time; a run and its own baseline differ in them."""
    runs = _runs(tmp_path, "deep", DEEP, graphs=2, device="cuda", workers=4)
    gain = _methods([*runs, *_runs(tmp_path, "uniform", UNIFORM, graphs=0)])["deep"].gain
    assert gain is not None and gain.n == 3


def known_by(runs: list[Run], **fields: object) -> list[Run]:
    """The runs, whose summaries also say what their data and student are known by."""
    for run in runs:
        path = run.path / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return [open_run(run.path) for run in runs]


SMALL = {"classes": 2, "student_parameters": 58, "samples": {"train": 80, "valid": 20, "test": 20}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classes": 4}, "classes"),
        ({"student_parameters": 644}, "student_parameters"),
        ({"samples": {"train": 400, "valid": 20, "test": 20}}, "samples"),
        ({"data_identity": {"file": "f" * 32}}, "file, samples"),
    ],
)
def test_other_data_and_students_of_one_name_are_not_pooled(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    """All arrays are called `arrays`, all modules `custom`, and a file may be edited."""
    runs = known_by(_runs(tmp_path / "a", "deep", DEEP, data="arrays", student="custom"), **SMALL)
    others = _runs(tmp_path / "b", "uniform", UNIFORM, data="arrays", student="custom")
    comparison = compare([*runs, *known_by(others, **(SMALL | change))])
    assert len(comparison.settings) == 2
    assert f"differ in {told}: runs of different" in comparison.to_text()
    same = _runs(tmp_path / "c", "uniform", UNIFORM, data="arrays", student="custom")
    moved = {"samples": {"train": 70, "valid": 30, "test": 20}}  # split by the seed
    assert len(compare([*runs, *known_by(same, **(SMALL | moved))]).settings) == 1


def test_a_seed_may_decide_the_data_but_one_seed_has_one(tmp_path: Path) -> None:
    runs = _runs(tmp_path / "a", "deep", DEEP) + _runs(tmp_path / "a", "uniform", UNIFORM)
    seeds = [str(run.summary["seed"]) for run in runs]
    runs = [
        known_by([run], data_identity={"file": None, "labels": seed, "inputs": "x"})[0]
        for run, seed in zip(runs, seeds, strict=True)
    ]
    assert _methods(runs)["deep"].gain is not None
    (other,) = _runs(tmp_path / "b", "uniform", UNIFORM[:1])
    identity = {"file": None, "labels": "another", "inputs": "x"}
    text = compare([*runs, *known_by([other], data_identity=identity)]).to_text()
    assert "contents another x" in text and "differ in contents: runs of different" in text


def test_runs_of_an_earlier_version_are_paired_with_new_ones(tmp_path: Path) -> None:
    """Which knew labels with their sources alone."""
    earlier = {"file": None, "labels": "of both", "inputs": "x"}
    runs = known_by(_runs(tmp_path / "a", "deep", DEEP), data_identity=earlier)
    now = {"file": None, "labels": "alone", "sources": "of both", "inputs": "x"}
    plain = _runs(tmp_path / "a", "uniform", UNIFORM)
    assert _methods([*runs, *known_by(plain, data_identity=now)])["deep"].gain is not None
    text = compare([*runs, *known_by(plain, data_identity=now | {"sources": "no"})]).to_text()
    assert "differ in contents: runs of different" in text


def test_what_was_left_out_of_a_run_is_told(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", samples=False)
    make_run(path / "inner", method="focal", data="npz:other.npz", samples=False)
    text = compare([open_run(path)]).to_text()
    assert "inner was not trained beside this run (other data): left out" in text
    assert "focal" not in text


def test_teacher_settings_make_variants(tmp_path: Path) -> None:
    runs = _runs(tmp_path / "a", "deep", DEEP) + _runs(tmp_path / "b", "deep", FOCAL, window=5)
    runs += _runs(tmp_path / "c", "uniform", UNIFORM, window=7)
    cells = _methods(runs)
    assert list(cells) == ["uniform", "deep window=2", "deep window=5"]
    assert all(cells[name].gain is not None for name in list(cells)[1:])


def test_interval_left_to_the_run_is_no_variant(tmp_path: Path) -> None:
    runs = []
    for name, interval in (("a", None), ("b", 20)):
        path = make_run(tmp_path / name, seed=len(runs), interval=interval, n=10)
        summary = json.loads((path / "summary.json").read_text())
        (path / "summary.json").write_text(json.dumps(summary | {"interval": 20}))
        runs.append(open_run(path))
    assert list(_methods(runs)) == ["deep"]


def test_missing_partners_doubles_and_power_are_said(tmp_path: Path) -> None:
    runs = _runs(tmp_path, "deep", DEEP) + _runs(tmp_path, "uniform", UNIFORM[:2])
    text = compare([*runs, *_runs(tmp_path / "again", "deep", [0.5])]).to_text()
    assert "deep: 2 of 3 seeds have a uniform run to pair with" in text
    assert "deep, seed 0 is there twice with different results" in text
    assert "n <= 5 pairs: the tests have little power (at 2 the smallest" in text
    assert "0.5)" in text  # 2 of the 2^2 signs are as extreme as can be


def test_without_test_set_validation_is_named(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", selected=None)
    text = compare([open_run(path)]).to_text()
    assert "best valid %" in text and "optimistic" in text and "93.00" in text


def test_csv_holds_the_numbers(tmp_path: Path) -> None:
    runs = _runs(tmp_path, "deep", DEEP) + _runs(tmp_path, "uniform", UNIFORM)
    comparison = compare(runs)
    uniform, deep = csv.DictReader(io.StringIO(comparison.to_csv()))
    assert float(deep["mean"]) == pytest.approx(91)
    assert float(deep["std"]) == pytest.approx(1)
    assert float(deep["gain"]) == pytest.approx(91 - 244 / 3)
    assert deep["by_seed"] == "0: 90.0000; 1: 92.0000; 2: 91.0000"
    assert uniform["gain"] == "" and uniform["reading"] == ""
    assert comparison.to_csv() == compare(runs).to_csv()


def test_nothing_to_compare() -> None:
    with pytest.raises(DataError, match="name at least one run"):
        compare([])


def test_results_table(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", seconds=30)
    make_run(path / "baseline", method="uniform", selected=0.8, seconds=10)
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(results_table(method_results(open_run(path))).to_rich())
    text = console.export_text()
    assert text.index("uniform") < text.index("deep")
    for shown in ("90.00", "89.00", "91.00", "0.950", "30.0", "3.00 x", "optimistic best %"):
        assert shown in text
    assert method_result({"method": "deep"}).relative_cost is None


def test_names_of_methods_stay_whole_where_it_is_narrow() -> None:
    names = ("focal+gamma=0.5", "focal+gamma=2.0")
    columns = ("method", *("optimistic best %",) * 6)
    table = TextTable("Results", columns, tuple((name, *("97.25",) * 6) for name in names))
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table.to_rich())
    text = console.export_text()
    cells = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert "…" not in text and "".join(cells) == "".join(names)


def test_cells_cannot_break_a_table() -> None:
    table = TextTable("[red]t", ("a|b", "[bold]n"), (("x\ny|z", "[link=x]"),))
    assert "| x y\\|z | [link=x] |" in table.to_markdown()
    assert len(table.to_text().splitlines()) == 4
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table.to_rich())
    text = console.export_text()
    assert "[link=x]" in text and "[red]t" in text and "[bold]n" in text


def test_averages_are_shown_where_there_are_any(tmp_path: Path) -> None:
    runs = _runs(tmp_path, "uniform", UNIFORM) + _runs(tmp_path, "deep", DEEP)
    assert "EMA" not in compare(runs).to_text()
    assert "EMA" not in results_table(method_results(runs[0])).to_text()
    runs += _runs(tmp_path, "focal", FOCAL, averaged=0.875)
    (table,) = compare(runs).tables()
    assert table.columns[-1] == "EMA, last %"
    shown = {row[0]: row[-1] for row in table.rows}
    assert shown == {"uniform": "-", "deep": "-", "focal": "87.50 ± 0.00"}
    lines = list(csv.DictReader(io.StringIO(compare(runs).to_csv())))
    means = {line["method"]: line["ema_last_mean"] for line in lines}
    assert means == {"uniform": "", "deep": "", "focal": "87.5"}
    one = results_table(method_results(runs[-1]))
    assert (one.columns[-1], one.rows[0][-1]) == ("EMA, last %", "87.50")
