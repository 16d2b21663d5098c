"""`deepteach reproduce`: a table at the smoke scale, killed and gone on with, and what it tells."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paths import EXPERIMENTS
from scipy import stats
from toy import Command

from deepteach.cli import main
from deepteach.errors import DataError
from deepteach.reproduction import launch as executors
from deepteach.reproduction import runner as reproduce
from deepteach.reproduction import summary
from deepteach.reproduction.cell import Cell
from deepteach.reproduction.launch import Entry, Job, run_task
from deepteach.reproduction.runner import COLUMNS, execute, read_csv, result_rows
from deepteach.reproduction.tables import cells

SMOKE = ("--scale", "smoke", "--data", "none", "--out", "out")


def shell(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deepteach", *arguments],
        cwd=folder, text=True, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, **environment},
    )  # fmt: skip


def marks(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every summary: a file written again has others."""
    found = {path.parent.name: path.stat() for path in folder.glob("*/summary.json")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.fixture(scope="module")
def table6(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    """The whole table: killed with all its processes midway, then gone on with."""
    folder = tmp_path_factory.mktemp("table6")
    first = shell(folder, "reproduce", "table6", *SMOKE, "--jobs", "2")
    until = time.monotonic() + 120
    while len(marks(folder / "out")) < 5:
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = marks(folder / "out")
    assert 5 <= len(before) < len(cells("table6", "smoke"))
    second = shell(folder, "reproduce", "table6", *SMOKE)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said
    return folder / "out", before, said


def test_a_killed_table_redoes_no_finished_cell(table6: tuple[Path, dict, str]) -> None:
    out, before, said = table6
    after = marks(out)
    assert {name: after[name] for name in before} == before
    assert set(after) == {cell.folder for cell in cells("table6", "smoke")}
    assert said.count("finished: ") == len(after) - len(before)


def test_the_file_of_results(table6: tuple[Path, dict, str]) -> None:
    out, _, _ = table6
    lines = (out / "table6.csv").read_text().splitlines()
    assert lines[0] == (
        "table,data,noise,rate,student,method,variant,seed,test_error_last,test_error_best,"
        "test_error_selected,noise_auroc,seconds,command,commit"
    )
    found = cells("table6", "smoke")
    rows = read_csv(out / "table6.csv")
    assert len(rows) == len(lines) - 1 == len(found)
    for row, cell in zip(rows, found, strict=True):
        assert (row["method"], row["rate"], row["seed"]) == (cell.method, str(cell.rate), "0")
        summary = json.loads((out / cell.folder / "summary.json").read_text())
        assert summary["method"] == cell.settings["method"]
        for kind in ("last", "best", "selected"):
            error = 100 * (1 - summary[f"test_accuracy_{kind}"])
            assert float(row[f"test_error_{kind}"]) == pytest.approx(error, abs=1e-4)
        assert float(row["noise_auroc"]) == pytest.approx(summary["noise_auroc"], abs=1e-6)
        assert row["command"].startswith("deepteach train --no-report --data digits --noise.kind")
        assert row["commit"]


def test_a_row_s_command_gives_its_figures(table6: tuple[Path, dict, str], call: Command) -> None:
    out, _, _ = table6
    cell = next(c for c in cells("table6", "smoke") if c.method == "deep")
    row = next(r for r in read_csv(out / "table6.csv") if r["method"] == "deep")
    arguments = shlex.split(row["command"])[1:]
    place = arguments.index("--out")
    assert arguments[place + 1] == f"out/{cell.folder}"
    assert call(*arguments[:place], "--out", "again").code == 0
    for name in ("weights.csv", "student.safetensors", "teacher.safetensors"):
        assert Path("again", name).read_bytes() == (out / cell.folder / name).read_bytes()


def test_committed_rows_can_be_checked(table6: tuple[Path, dict, str]) -> None:
    """The script beside the results runs rows again and tells a figure that differs."""
    out, _, _ = table6
    script = EXPERIMENTS / "rerun_rows.py"
    copy = out / "copy.csv"
    for change, code, verdict in (("", 0, "2 of 2 rows"), ("9", 1, "0 of 2 rows")):
        rows = [
            {**r, "test_error_last": change or r["test_error_last"]}
            for r in read_csv(out / "table6.csv")
        ]
        reproduce.write_csv(rows, copy)
        command = [sys.executable, str(script), str(copy), "--rows", "2"]
        found = subprocess.run(command, cwd=out, text=True, capture_output=True)
        assert (found.returncode, verdict in found.stdout) == (code, True), found.stderr


def test_a_finished_table_is_only_shown(
    table6: tuple[Path, dict, str], call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _, said = table6
    monkeypatch.chdir(out.parent)
    before = marks(out)
    answer = call("reproduce", "table6", *SMOKE)
    assert answer.code == 0 and marks(out) == before
    assert answer.out.strip() == said[said.index("table6 at scale") :].strip()
    assert "not reproduced" in answer.out.lower() and "GPU" in answer.out
    from_file = call("reproduce", "table6", "--scale", "smoke", "--results", "out/table6.csv")
    assert from_file.out == answer.out
    markdown = call("reproduce", "table6", *SMOKE, "--format", "markdown").out
    assert "| uniform | 1 |" in markdown


def test_a_row_is_enough_to_go_on(tmp_path: Path, call: Command) -> None:
    """A cell whose folder is gone keeps its row; one without a row is run."""
    out = tmp_path / "out"
    command = ("reproduce", "deeper", "--scale", "smoke", "--out", out)
    assert call(*command).code == 0
    first, *others = cells("deeper", "smoke")
    rows = read_csv(out / "deeper.csv")
    marked = {**rows[0], "seconds": "12345.00"}
    reproduce.write_csv([marked], out / "deeper.csv")
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    answer = call(*command)
    assert answer.code == 0 and "missing" not in answer.out
    again = read_csv(out / "deeper.csv")
    assert again[0] == marked and not (out / first.folder).exists()
    for row, old, cell in zip(again[1:], rows[1:], others, strict=True):
        assert (out / cell.folder / "summary.json").is_file()
        timeless = {"seconds": ""}
        assert {**row, **timeless} == {**old, **timeless}
    other = {**marked, "command": marked["command"] + "-of-another-version"}
    reproduce.write_csv([marked, other], out / "deeper.csv")
    refused = call(*command)
    assert refused.code == 2 and "rows of other cells" in refused.err
    assert read_csv(out / "deeper.csv") == [marked, other]
    (out / "deeper.csv").write_text("damaged")
    assert call(*command).code == 2


def test_by_ray(tmp_path: Path) -> None:
    """A local Ray gives the same bits as this process."""
    run = shell(
        tmp_path, "reproduce", "deeper", *SMOKE, "--executor", "ray",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    )  # fmt: skip
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 0, said
    found = cells("deeper", "smoke")
    assert len(read_csv(tmp_path / "out" / "deeper.csv")) == len(found)
    cell = found[-1]
    with pytest.MonkeyPatch.context() as patch, open(os.devnull, "w") as null:
        patch.chdir(tmp_path)
        patch.setattr(sys, "stdout", null)
        assert main(reproduce.arguments(cell, None, Path("here"))) == 0
    for name in ("weights.csv", "student.safetensors"):
        ray, here = (tmp_path / root / cell.folder / name for root in ("out", "here"))
        assert ray.read_bytes() == here.read_bytes()


# --- with commands that only pretend ------------------------------------------------------


def pretend(arguments: list[str]) -> int:
    """Ends well, badly (spl, with a line in its log) or by dying (focal with gamma 1)."""
    flags = dict(zip(arguments[2::2], arguments[3::2], strict=False))
    if flags["--method"] == "spl":
        print("deepteach: a reason")
        return 4
    if flags["--method"] == "focal+gamma=1":
        os.kill(os.getpid(), signal.SIGKILL)
    folder = Path(flags["--out"])
    folder.mkdir(exist_ok=True)
    accuracy = {f"test_accuracy_{kind}": 0.5 for kind in ("last", "best", "selected")}
    summary = {**accuracy, "noise_auroc": None, "seconds": 1.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    return 0


def in_turn(tasks: Sequence[Job], jobs: int, entry: Entry) -> Iterator[tuple[Job, int]]:
    for task in tasks:
        CALLS.append(task)
        yield task, run_task(task, entry, os.getcwd())


CALLS: list[Job] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def test_a_failing_or_dying_cell_does_not_stop_the_others(tmp_path: Path) -> None:
    wanted = ("spl", "focal", "l2t-data")
    found = [cell for cell in cells("table1", "smoke") if cell.method in wanted]
    failures = execute(found, None, tmp_path, pretend)
    told = {failure.name: failure for failure in failures}
    by_method = {cell.method + cell.variant: cell.folder for cell in found}
    assert set(told) == {by_method["spl"], by_method["focalgamma=1"]}
    assert told[by_method["spl"]].code == 4
    assert told[by_method["spl"]].reason.startswith("deepteach: a reason")
    assert told[by_method["focalgamma=1"]].code == 1
    assert told[by_method["focalgamma=1"]].reason.startswith("its process died")
    assert len(result_rows(found, tmp_path, {})) == len(found) - 2 == 3


def test_failures_are_listed_and_the_code_is_theirs(
    call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(executors.EXECUTORS, "processes", in_turn)
    monkeypatch.setattr("deepteach.cli.main", lambda a: 4 if "focal+gamma=2" in a else pretend(a))
    monkeypatch.setattr(os, "kill", lambda *_: None)
    answer = call("reproduce", "table1", "--scale", "smoke", "--out", "out")
    assert answer.code == 4
    assert "failed (4): digits-mlp-focal+gamma=2" in answer.err
    assert "2 of 8 cells are missing" in answer.out
    with open("out/table1.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6


def test_seeds_come_in_turn(tmp_path: Path) -> None:
    """A stopped table has all its methods at the first seeds."""
    found = cells("table4", "smoke", seeds=3)
    execute(found, None, tmp_path, pretend, executor=in_turn)
    seeds = [task.arguments[task.arguments.index("--seed") + 1] for task in CALLS]
    assert seeds == sorted(seeds) and len(seeds) == 12


def test_equal_cells_run_once_under_one_folder(tmp_path: Path) -> None:
    for table, count in (("table2", 7), ("table4", 2), ("figure2", 0), ("deeper", 1)):
        CALLS.clear()
        assert not execute(cells(table, "smoke"), None, tmp_path, pretend, executor=in_turn)
        assert len(CALLS) == count


def test_sources_run_first_and_their_failure_is_told(tmp_path: Path) -> None:
    found = cells("transfer", "smoke")
    assert not execute(found, None, tmp_path, pretend, executor=in_turn)
    names = [task.name for task in CALLS]
    for cell in found:
        if cell.source is not None:
            assert names.index(cell.source.folder) < names.index(cell.folder)
            task = CALLS[names.index(cell.folder)]
            place = task.arguments.index("--teacher_from")
            assert task.arguments[place + 1] == str(tmp_path / cell.source.folder)
    failures = execute(found, None, tmp_path / "b", lambda _: 4, executor=in_turn)
    orphans = [f for f in failures if "whose teacher it takes" in f.reason]
    assert len(orphans) == sum(cell.source is not None for cell in found)


def test_an_interrupted_cell_goes_on(tmp_path: Path) -> None:
    """The flag is added for the folder's sake; the command on record stays the plain one."""
    (cell, *_) = cells("deeper", "smoke")
    (tmp_path / cell.folder).mkdir()
    (tmp_path / cell.folder / "config.yaml").write_text("{}")
    execute([cell], None, tmp_path, pretend, executor=in_turn)
    assert CALLS[0].arguments[-1] == "--resume"
    (row,) = result_rows([cell], tmp_path, {})
    assert row["command"] == "deepteach " + shlex.join(CALLS[0].arguments[:-1])


def test_the_commit_is_that_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "commit", lambda: "before")
    found = cells("deeper", "smoke")
    execute(found[:1], None, tmp_path, pretend, executor=in_turn)
    monkeypatch.setattr(reproduce, "commit", lambda: "after")
    execute(found, None, tmp_path, pretend, executor=in_turn)
    assert [row["commit"] for row in result_rows(found, tmp_path, {})] == [
        "before",
        "after",
        "after",
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("tabel6",), "unknown table 'tabel6', did you mean 'table6'?"),
        (("table6", "--scale", "cpuu"), "unknown scale 'cpuu', did you mean 'cpu'?"),
        (("table6", "--executor", "rai"), "unknown executor 'rai', did you mean 'ray'?"),
        (("table6", "--jobs", "0"), "--jobs must be 1 or more, got 0"),
        (("table6", "--seeds", "0"), "--seeds must be 1 or more, got 0"),
        (("table6",), "needs clean.npz (no --data was given)"),
        (("human", "--data", "there"), "needs aggre.npz, random1.npz, worse.npz (not in --data"),
        (("table1", "--scale", "paper", "--data", "x"), "needs cifar10, cifar100 (not in --data x"),
        (("table6", "--results", "none.csv"), "none.csv cannot be read as CSV"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: tuple[str, ...], message: str, call: Command
) -> None:
    answer = call("reproduce", *arguments)
    assert answer.code == 2 and message in answer.err
    assert answer.err.count("\n") == 1 and not Path("runs").exists()


def test_foreign_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text in ("a,b\n1,2\n", "", ",".join(COLUMNS) + "\n1\n"):
        path.write_text(text)
        with pytest.raises(DataError, match="is not a file of results"):
            read_csv(path)


# --- the table beside the paper's ---------------------------------------------------------

ERRORS = {"uniform": (40.0, 42.0, 41.0), "paper": (38.0, 41.0, 37.0), "mwn": (41.0, 42.0, 44.0)}


def made_up() -> list[dict[str, str]]:
    """Rows of table 6 at the cpu scale, flip 40 %."""
    rows = []
    for cell in cells("table6", "cpu"):
        if cell.rate == 0.4 and cell.method in ERRORS:
            error = ERRORS[cell.method][cell.seed]
            figures = {f"test_error_{kind}": str(error) for kind in ("best", "selected")}
            shown = {name: str(getattr(cell, name)) for name in COLUMNS[:8]}
            rest = {"noise_auroc": "", "seconds": "7", "command": "c", "commit": "x"}
            rows.append({**shown, **figures, "test_error_last": str(error + 5), **rest})
    return rows


def test_the_summary_against_scipy() -> None:
    table, missing = summary.summarise(made_up(), "cpu")
    assert "scale cpu" in table.title and "flip 40 %, resnet8" in table.title
    lines = {line[0]: dict(zip(table.columns, line, strict=True)) for line in table.rows}
    gained = np.subtract(ERRORS["uniform"], ERRORS["paper"])
    interval = stats.t.interval(0.95, 2, gained.mean(), stats.sem(gained))
    ours = lines["paper"]
    assert ours["selected, error %"] == "38.67 ± 2.08" and ours["n"] == "3"
    assert ours["gain, points"] == f"{gained.mean():+.2f} ± {gained.std(ddof=1):.2f}"
    assert ours["95 % interval"] == f"{interval[0]:+.2f} to {interval[1]:+.2f}"
    assert ours["last, error %"] == "43.67 ± 2.08"
    assert ours["gain at last"] == ours["gain, points"]  # five points above, all of them
    assert lines["uniform"]["gain, points"] == ours["AUROC"] == "-"
    # The paper's: 29.23 for the baseline, 11.29 and 12.46 for the others.
    assert (ours["paper %"], ours["paper's gain"]) == ("11.29", "+17.94")
    assert (lines["mwn"]["paper %"], lines["uniform"]["paper %"]) == ("12.46", "29.23")
    both = [stats.ttest_rel(ERRORS["uniform"], ERRORS[m]).pvalue for m in ("paper", "mwn")]
    assert float(ours["p (t, Holm)"]) == pytest.approx(min(1, 2 * min(both)), abs=1e-3)
    assert lines["mwn"]["gain, points"].startswith("-1.33")
    assert any("little power" in note for note in table.notes)
    assert missing.title == "Not reproduced" and len(missing.rows) == 4


def test_weights_that_are_all_alike_rank_nothing() -> None:
    rows = [{**row, "noise_auroc": "0.500000"} for row in made_up()]
    rows[-1]["noise_auroc"] = "0.900000"
    shown = [line[summary.HEAD.index("AUROC")] for line in summary.summarise(rows, "cpu")[0].rows]
    assert sorted(shown)[:2] == ["-", "-"] and sorted(shown)[-1] == "0.633 ± 0.231"


def test_averages_are_columns_where_a_run_kept_one(tmp_path: Path) -> None:
    """Files without any have the columns that they always had."""
    rows = made_up()
    reproduce.write_csv(rows, tmp_path / "none.csv")
    assert read_csv(tmp_path / "none.csv") == rows
    accuracies = {f"test_accuracy{e}_last": 0.5 for e in ("", "_ema")}
    kinds = {f"test_accuracy{e}_{k}": 0.25 for e in ("", "_ema") for k in ("best", "selected")}
    found = reproduce.figures_of({**kinds, **accuracies, "noise_auroc": None})
    assert found["test_error_ema_last"] == "50.0000"
    assert found["test_error_ema_selected"] == found["test_error_ema_best"] == "75.0000"
    for row in rows:
        if row["method"] != "mwn":
            error = float(row["test_error_last"]) - (3 if row["method"] == "paper" else 1)
            row |= {name: str(error) for name in reproduce.EMA_COLUMNS}
    reproduce.write_csv(rows, tmp_path / "some.csv")
    again = read_csv(tmp_path / "some.csv")
    assert list(again[0]) == [*COLUMNS, *reproduce.EMA_COLUMNS]
    assert [row["test_error_ema_last"] for row in again if row["method"] == "mwn"] == [""] * 3
    table = summary.summarise(again, "cpu")[0]
    lines = {line[0]: line[-2:] for line in table.rows}
    assert table.columns[-2:] == summary.EMA_HEAD
    assert lines["mwn"] == ("-", "-") and lines["uniform"] == ("45.00 ± 1.00", "-")
    gained = np.subtract(ERRORS["uniform"], ERRORS["paper"]) + 2
    assert lines["paper"][1] == f"{gained.mean():+.2f} ± {gained.std(ddof=1):.2f}"


def test_the_order_of_rows_does_not_matter() -> None:
    one, other = (summary.summarise(rows, "cpu")[0] for rows in (made_up(), made_up()[::-1]))
    assert sorted(one.rows) == sorted(other.rows)


def test_only_shared_seeds_are_paired() -> None:
    rows = [row for row in made_up() if (row["method"], row["seed"]) != ("uniform", "1")]
    table = summary.summarise(rows, "cpu")[0]
    ours = next(line for line in table.rows if line[0] == "paper")
    assert ours[1] == "3" and ours[3] == "+3.00 ± 1.41"


def test_no_rows_and_no_numbers() -> None:
    with pytest.raises(DataError, match="found none"):
        summary.summarise([], "cpu")
    rows = [{**row, "test_error_last": "x"} for row in made_up()]
    with pytest.raises(DataError, match="not a number"):
        summary.summarise(rows, "cpu")


def test_the_page_of_figure_2(tmp_path: Path) -> None:
    """T1's report with T0 and plain training beside it: six panels."""
    found = cells("figure2", "smoke")
    for cell in found:
        with pytest.MonkeyPatch.context() as patch, open(os.devnull, "w") as null:
            patch.setattr(sys, "stdout", null)
            assert main(reproduce.arguments(cell, None, tmp_path)) == 0
    page = summary.figure2_page(found, tmp_path).read_text()
    for name in ("paper+features=M1", "paper+features=I0"):
        assert f"{name}: weight of each training sample against its loss" in page
        assert f"{name}: map of the internal states, coloured by given label" in page
        assert page.count("the same map coloured by weight") == 2
    broken: list[Cell] = [replace(cell, seed=0) for cell in found]
    with pytest.raises(DataError):
        summary.figure2_page(broken, tmp_path / "nowhere")
