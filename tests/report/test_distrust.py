"""Classes and sources by how much of them is distrusted, and what labels are taken for."""

from __future__ import annotations

import numpy as np

from deepteach.report.distrust import LISTED, MATRIX, distrust_tables
from deepteach.report.workbench import keys_of
from deepteach.runs.weights import Weights


def weights(
    given: list[str], suggested: list[str], weight: list[float], **more: list[str]
) -> Weights:
    columns = {name: np.array(column) for name, column in more.items()}
    n = len(given)
    return Weights(
        np.arange(n), np.array(given), np.array(suggested), np.array(suggested),
        np.array(weight), np.zeros(n), np.full(n, ""), **columns,
    )  # fmt: skip


def test_classes_and_sources_are_ranked_and_confused() -> None:
    found = weights(
        ["cat", "cat", "dog", "dog", "emu"],
        ["cat", "cat", "cat", "dog", "emu"],
        [1.5, 1.5, 0.25, 1.25, 0.5],
        group=["a", "b", "b", "b", "c"],
    )
    classes, confused, sources = distrust_tables(found)
    assert classes.rows == (
        ("dog", "2", "1", "50.0", "0.750"),
        ("emu", "1", "0", "0.0", "0.500"),  # of equal shares the lighter one comes first
        ("cat", "2", "0", "0.0", "1.500"),
    )
    assert confused.columns[1:] == ("cat", "dog", "emu")
    assert confused.rows[1] == ("dog", "1", "1", "0")
    assert [row[0] for row in sources.rows] == ["b", "c", "a"]
    assert distrust_tables(found, classes=False) == (sources,)


def test_many_classes_are_cut_and_said() -> None:
    many = [str(i) for i in range(MATRIX + LISTED)]
    found = weights(many, [*many[1:], many[0]], [0.5] * len(many))
    classes, confused = distrust_tables(found)
    assert len(classes.rows) == len(confused.rows) == LISTED
    assert classes.notes == (f"the first {LISTED} of {len(many)}",)
    assert confused.columns == ("given label", "suggested label", "samples")


def test_keys_are_the_names_where_they_can_be() -> None:
    assert keys_of(("0", "1", "7")) == ["0", "1", "7"]
    assert keys_of(("A", "b")) == ["a", "b"]
    assert keys_of(("a", "A")) == ["1", "2"]  # one key cannot be two classes
    assert keys_of(("r", "x")) == ["1", "2"]  # r is right
    names = keys_of(tuple(f"class {i}" for i in range(40)))
    assert names[:10] == [*"123456789", "a"] and not set("rwul") & set(names)
    assert names[31:] == [""] * 9  # 9 digits and 22 letters; the rest is written
