"""A parquet file is read as the same table in a csv is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import refused, rng, same

from deepteach.data.readers import load
from deepteach.errors import ConfigError

pyarrow = pytest.importorskip("pyarrow")

COUNT = 60


def columns() -> dict[str, Any]:
    x = rng().normal(size=(COUNT, 2))
    return {
        "a": x[:, 0].tolist(),
        "b": [bool(value > 0) for value in x[:, 1]],
        "age": list(range(COUNT)),
        "Label": [("ant", "bee")[i % 2] for i in range(COUNT)],
        "split": ["test" if i % 6 == 5 else "train" for i in range(COUNT)],
        "source": [f"s{i % 3}" for i in range(COUNT)],
    }


def written(path: Path, changes: dict[str, Any] | None = None) -> str:
    from pyarrow import parquet

    found = {k: v for k, v in {**columns(), **(changes or {})}.items() if v is not None}
    parquet.write_table(pyarrow.table(found), path)
    return f"parquet:{path}"


def test_as_the_same_csv(tmp_path: Path) -> None:
    spec = written(tmp_path / "t.parquet")
    lines = [
        ",".join(columns()),
        *(",".join(map(str, row)) for row in zip(*columns().values(), strict=True)),
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    found, expected = (
        load(source, 0, valid_size=12, group="source")
        for source in (spec, f"csv:{tmp_path / 't.csv'}")
    )
    assert same(found, expected) and found.group is not None and expected.group is not None
    assert torch.equal(found.group, expected.group) and torch.equal(found.rows, expected.rows)
    assert found.label_names == ("ant", "bee") and found.group_names == ("s0", "s1", "s2")


def test_the_index_of_a_data_frame_is_left_out(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({k: columns()[k] for k in ("a", "age", "Label")})
    frame.index = [7 * i % 61 for i in range(COUNT)]
    frame.to_parquet(tmp_path / "t.parquet")
    data = load(f"parquet:{tmp_path / 't.parquet'}", 0, valid_size=12)
    assert data.input_shape == (2,)


@pytest.mark.parametrize("name", [None, "id", "Label"])
def test_an_index_is_no_feature_and_no_label(name: str | None, tmp_path: Path) -> None:
    """But where it has the name of one, or is the group that is asked for."""
    pandas = pytest.importorskip("pandas")
    own = "Label" if name != "Label" else "kind"
    frame = pandas.DataFrame({"a": columns()["a"], own: columns()["Label"]})
    frame.index = pandas.Index([i * i % 3 for i in range(COUNT)], name=name)
    frame.to_parquet(tmp_path / "t.parquet")
    spec = f"parquet:{tmp_path / 't.parquet'}"
    data = load(spec, 0, valid_size=12)
    if name == "Label":
        assert data.input_shape == (3,) and data.label_names is None  # a and two kinds
        return
    called = name or "__index_level_0__"
    assert data.input_shape == (1,) and data.label_names == ("ant", "bee")
    assert f"the index of the data frame is not used: {called}" in data.notes
    grouped = load(spec, 0, valid_size=12, group=called)
    assert grouped.input_shape == (1,) and grouped.group_names == ("0", "1")


def test_a_label_of_another_name_beside_an_index(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": columns()["a"], "kind": columns()["Label"]})
    frame.index = pandas.Index([7 * i % 61 for i in range(COUNT)], name="id")
    frame.to_parquet(tmp_path / "t.parquet")
    data = load(f"parquet:{tmp_path / 't.parquet'}", 0, valid_size=12)
    assert data.input_shape == (1,) and data.label_names == ("ant", "bee")


def test_sources_as_bytes_are_text(tmp_path: Path) -> None:
    own = [text.encode() for text in columns()["source"]]
    data = load(written(tmp_path / "t.parquet", {"source": own}), 0, valid_size=12, group="source")
    assert data.group_names == ("s0", "s1", "s2")


def changed(row: int, value: Any, name: str) -> dict[str, Any]:
    column = list(columns()[name])
    column[row] = value
    return {name: column}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (changed(4, None, "a"), "row 4: column 'a' has a missing value (1 of 60 rows"),
    "binary": ({"a": [b"x"] * COUNT}, "column 'a' holds binary: expected numbers or text"),
    "no text there": ({"a": [*["x"] * 59, None]}, "row 59: column 'a' has a missing value (1 of"),
    "no label there": (changed(9, None, "Label"), "y_train has no label at row 9 (1 of"),
    "split": (changed(2, "trian", "split"), "row 2: split is 'trian', expected train, valid"),
    "no group there": (changed(2, None, "source"), "row 2: column 'source' is empty"),
    "nan": (changed(8, float("nan"), "a"), "holds nan in row 8 (feature 0)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line(name: str, tmp_path: Path) -> None:
    spec = written(tmp_path / "t.parquet", BAD[name][0])
    refused(lambda: load(spec, 0, group="source"), BAD[name][1])


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: load(f"parquet:{tmp_path}/none", 0), "does not exist")
    (tmp_path / "t.csv").write_text("a,label\n1,2\n")
    refused(lambda: load(f"parquet:{tmp_path}/t.csv", 0), "cannot be read as parquet")
    spec = written(tmp_path / "t.parquet")
    monkeypatch.setattr("deepteach.data.memory.available", lambda: 100)
    refused(lambda: load(spec, 0), "GiB in memory")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    refused(lambda: load(spec, 0), "pip install 'deepteach[parquet]'", ConfigError)


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    from pyarrow import parquet

    own = [pyarrow.array(range(COUNT)) for _ in range(3)]
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_arrays(own, names=["a", "a", "label"]), file)
    refused(lambda: load(f"parquet:{file}", seed=0), "has two columns 'a': give each a name")
