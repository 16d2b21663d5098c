"""The tables as runs: every cell is one that can run, and the paper's numbers are the paper's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import make_run

from deepteach.errors import ConfigError
from deepteach.models import STUDENTS, build
from deepteach.reproduction.beyond import BEYOND, GROUNDS
from deepteach.reproduction.cell import Cell
from deepteach.reproduction.published import (
    PUBLISHED_1,
    PUBLISHED_2,
    PUBLISHED_5,
    PUBLISHED_6,
    PUBLISHED_7,
)
from deepteach.reproduction.scale import SCALES
from deepteach.reproduction.tables import TABLES, cells, not_reproduced
from deepteach.teachers.method import MethodContext
from deepteach.teachers.registry import method
from deepteach.training.config import make

PAPERS = [(table, scale) for table in TABLES if table not in BEYOND for scale in SCALES]
EVERY = [*PAPERS, *((table, scale) for table in BEYOND for scale in GROUNDS)]
CLASSES = {"CIFAR-100": 100}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("source") / "run")


@pytest.mark.parametrize("table, scale", EVERY)
def test_every_cell_is_a_run(table: str, scale: str, finished: Path) -> None:
    found = cells(table, scale)
    assert found and all(cell.table == table for cell in found)
    for cell in found:
        config = make(dict(cell.settings))
        assert config.student in STUDENTS and config.seed == cell.seed and not config.baseline
        assert config.method.partition("+")[0] == cell.method
        origin = None if cell.source is None else str(finished)
        classes = CLASSES.get(cell.data, 10)
        counts = {"counts": (10,) * classes, "samples": 10 * classes}
        counts["group_counts"] = (classes,) * 20
        context = MethodContext(classes, 64, 100, 0, origin, **counts)
        chosen = method(config.method, context)
        window = config.window or chosen.window or 2
        assert 1 <= window <= (config.interval or chosen.interval or 20)


@pytest.mark.parametrize("table, scale", EVERY)
def test_cells_are_told_apart(table: str, scale: str) -> None:
    found = cells(table, scale)
    shown = {(c.data, c.noise, c.rate, c.student, c.method, c.variant, c.seed) for c in found}
    assert len(shown) == len(found) == len({cell.folder for cell in found})


@pytest.mark.parametrize("table, scale", PAPERS)
def test_every_row_has_its_uniform_baseline_and_all_seeds(table: str, scale: str) -> None:
    """Same data, noise, student and schedule: only what the teacher uses may differ."""
    teaching = {"method", "interval", "window", "internal", "pool", "through_weights"}

    def schedule(cell: Cell) -> str:
        values = {k: v for k, v in cell.settings.items() if k not in teaching}
        return repr(sorted(values.items(), key=str))

    found = cells(table, scale)
    plain = {schedule(cell) for cell in found if cell.method == "uniform"}
    assert {schedule(cell) for cell in found} == plain
    seeds = range(SCALES[scale].seeds)
    assert {c.seed for c in found} == set(seeds)
    assert len(found) % len(seeds) == 0
    assert len(cells(table, scale, seeds=2)) == 2 * len(found) // len(seeds)


@pytest.mark.parametrize("scale", SCALES)
def test_the_layers_of_table_3_exist(scale: str) -> None:
    """I1 to I3 are the last convolutions' outputs, from the deepest map to the first."""
    levels = [cell for cell in cells("table3", scale, seeds=1) if cell.method == "paper"]
    assert [cell.variant for cell in levels] == ["I0+M0", "I1+M0", "I2+M0", "I3+M0"]
    student = str(levels[0].settings["student"])
    module, top = build(student, (3, 16, 16), 10, 0)
    names = dict(module.named_modules())
    assert top == "fc" and "internal" not in levels[0].settings
    layers = [str(cell.settings["internal"]) for cell in levels[1:]]
    assert [name.split(".")[0] for name in layers] == ["layer3", "layer2", "layer1"]
    for name in layers:
        block, place, last = name.split(".")
        assert last == "bn2" and name in names
        assert f"{block}.{int(place) + 1}" not in names  # it is the last block
    assert all(cell.settings["pool"] == "avg" for cell in levels[1:])


def test_the_paper_at_its_own_scale() -> None:
    """Section 4 and the supplement, as far as they say."""
    clean = cells("table1", "paper", seeds=1)
    assert {cell.student for cell in clean} == {"resnet32", "resnet110", "wrn-28-10"}
    assert {cell.data for cell in clean} == {"CIFAR-10", "CIFAR-100"}
    taught = next(cell for cell in clean if cell.method == "paper")
    for key, value in {
        "epochs": 300, "milestones": (80, 120), "batch_size": 128, "lr": 0.1, "interval": 20,
        "window": 2, "valid_size": 5000, "augment": True,
    }.items():  # fmt: skip
        assert taught.settings[key] == value
    noisy = {t: cells(t, "paper", seeds=1)[0].settings for t in ("table5", "table6")}
    assert [noisy[t]["epochs"] for t in noisy] == [40, 60]
    assert [noisy[t]["milestones"] for t in noisy] == [(36, 38), (40, 50)]
    assert [noisy[t]["student"] for t in noisy] == ["wrn-28-10", "resnet32"]
    assert [noisy[t]["noise"]["kind"] for t in noisy] == ["uniform", "flip"]
    for table, rates in (("table5", {0.4, 0.6}), ("table6", {0.2, 0.4})):
        assert {cell.rate for cell in cells(table, "paper", seeds=1)} == rates
    pairs = [
        (c.settings["interval"], c.settings["window"])
        for c in cells("table7", "paper", seeds=1)
        if c.method == "paper"
    ]
    assert pairs == [(1, 1), (20, 2), (20, 5), (100, 2), (100, 5)]


def test_a_method_with_its_own_interval_keeps_it() -> None:
    for table, scale in EVERY:
        for cell in cells(table, scale, seeds=1):
            if cell.method not in ("paper", "deep"):
                assert "interval" not in cell.settings and "window" not in cell.settings


def _default(table: str, variant: str, scale: str) -> str:
    (cell,) = [c for c in cells(table, scale, seeds=1) if c.variant == variant]
    return cell.folder


def test_equal_cells_of_several_tables_are_one_run() -> None:
    same = {
        _default(table, variant, "paper")
        for table, variant in (
            ("table2", "I0+M0"), ("table3", "I0+M0"), ("table4", "MLP-0"),
            ("table7", "K=20 B=2"), ("deeper", "I0+M0"),
        )
    }  # fmt: skip
    assert len(same) == 1
    assert _default("table2", "I0", "cpu") == _default("figure2", "T1 (I0)", "cpu")
    # K = 7 at the cpu scale: its (20, 2) is another run.
    assert _default("table7", "K=20 B=2", "cpu") != _default("table2", "I0+M0", "cpu")


def test_a_folder_is_named_by_the_settings_and_the_source() -> None:
    (cell,) = [c for c in cells("controls", "cpu", seeds=1) if c.variant == "frozen at their mean"]
    assert cell.source is not None
    settings = {**cell.settings, "lr": 0.3}
    other = replace(cell, settings=settings)
    assert cell.folder == replace(cell, table="x", variant="y").folder != other.folder
    assert cell.folder != replace(cell, source=None).folder
    assert cell.folder != replace(cell, source=replace(cell.source, settings=settings)).folder


def test_the_published_gains() -> None:
    """The text gives the gains over the baseline apart from the table's errors."""
    gains = {key: round(row["Baseline"] - row["Ours"], 2) for key, row in PUBLISHED_1.items()}
    students = ("resnet32", "resnet110", "wrn-28-10")
    assert [gains["CIFAR-10", s] for s in students] == [1.02, 0.73, 0.55]
    assert [gains["CIFAR-100", s] for s in students] == [0.92, 1.67, 1.11]


def test_published_numbers() -> None:
    assert PUBLISHED_1["CIFAR-10", "wrn-28-10"]["Focal"] == 4.57
    assert PUBLISHED_1["CIFAR-100", "resnet110"]["SPL"] == 27.91
    assert PUBLISHED_5["CIFAR-10", 0.4] == {
        "Baseline": 31.93, "MentorNet": 12.67, "Meta-Weight-Net": 10.73, "Ours": 10.29,
    }  # fmt: skip
    assert PUBLISHED_5["CIFAR-100", 0.6]["MentorNet"] == 63.13
    assert PUBLISHED_6["CIFAR-10", 0.4]["Ours"] == 11.29
    assert PUBLISHED_6["CIFAR-100", 0.2]["Meta-Weight-Net"] == 35.78
    assert PUBLISHED_7[1, 1] == 6.56 and PUBLISHED_7[100, 5] == 6.24
    # One default teacher in five places.
    assert PUBLISHED_2["I0.M0"] == PUBLISHED_7[20, 2] == PUBLISHED_1["CIFAR-10", "resnet32"]["Ours"]


@pytest.mark.parametrize(
    "table, variant, method_name, number",
    [
        ("table2", "M0+M1", "paper", 6.50),
        ("table3", "I2+M0", "paper", 6.31),
        ("table4", "MLP-2", "paper", 6.59),
        ("table7", "K=100 B=2", "paper", 6.30),
        ("deeper", "through weights", "paper", 6.08),
        ("deeper", "", "uniform", 7.22),
        ("table1", "gamma=1", "focal", 6.60),
    ],
)
def test_numbers_stand_with_their_cells(
    table: str, variant: str, method_name: str, number: float
) -> None:
    for scale in SCALES:
        found = [c for c in cells(table, scale) if (c.method, c.variant) == (method_name, variant)]
        first = [c for c in found if c.student == found[0].student and c.data == found[0].data]
        assert {cell.published for cell in first} == {number}


def test_what_a_scale_cannot_have_is_told() -> None:
    assert not_reproduced("table1", "paper") == []
    here = not_reproduced("table1", "cpu")
    assert len(here) == len(PUBLISHED_1)
    assert all("GPU" in reason for reason in here)
    assert sum("images are not among" in reason for reason in here) == 3
    assert "CIFAR-100" not in {cell.data for cell in cells("table6", "cpu")}
    # Nothing small goes by a big name.
    for table in TABLES:
        for cell in cells(table, "cpu", seeds=1):
            assert cell.data != "CIFAR-10" and cell.student in (
                "resnet8",
                "resnet8-s2",
                "cnn",
                "mlp",
            )
    (reason,) = not_reproduced("transfer", "paper")
    assert "embedding" in reason


def test_transfer_names_its_source() -> None:
    found = [cell for cell in cells("transfer", "cpu", seeds=1) if cell.source is not None]
    targets = {(cell.student, cell.data) for cell in found}
    assert ("cnn", "CIFAR-10 (JPEG) 3,000 16x16") in targets
    assert ("resnet8", "digits") in targets
    for cell in found:
        assert cell.source is not None and "frozen" in cell.variant
        assert cell.source.settings["method"] == cell.settings["method"]
        assert cell.source.student == "resnet8" and cell.source.seed == cell.seed


@pytest.mark.parametrize(
    "table, scale, message",
    [("tabel6", "cpu", "did you mean 'table6'"), ("table6", "cpuu", "did you mean 'cpu'"),
     ("?", "cpu", "use one of table1")],
)  # fmt: skip
def test_unknown_names(table: str, scale: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cells(table, scale)


def test_no_seeds_are_refused() -> None:
    with pytest.raises(ConfigError, match="--seeds must be 1 or more"):
        cells("table6", "smoke", seeds=0)
