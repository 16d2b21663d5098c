"""A run goes on with the data that it began with, or says that they are others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import go, stop, toy_data
from toy import Probe

import deepteach as dt
from deepteach.data.dataset import Data
from deepteach.data.identity import file_of, identity_of
from deepteach.errors import DataError
from deepteach.training.signals import Interrupted


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return toy_data(tmp_path_factory.mktemp("data"))


def moved(y: torch.Tensor) -> torch.Tensor:
    """Two labels that differ, exchanged: as many of each class as before."""
    other = y.clone()
    at = int((y != y[0]).nonzero()[0])
    other[0], other[at] = y[at], y[0]
    return other


OTHERS: dict[str, Any] = {
    "labels": lambda d: replace(d, y_train=moved(d.y_train)),
    "trusted labels": lambda d: replace(d, y_valid=moved(d.y_valid)),
    "test labels": lambda d: replace(d, y_test=moved(d.y_test)),
    "order of rows": lambda d: replace(d, rows=d.rows.flip(0)),
    "sources": lambda d: replace(
        d, group=torch.zeros(len(d.rows), dtype=torch.int64), group_names=("one",)
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("finished", [False, True])
def test_other_labels_or_rows_are_refused(
    kind: str, finished: bool, data: Data, tmp_path: Path
) -> None:
    if finished:
        go(data, tmp_path / "run")
    else:
        with pytest.raises(Interrupted):
            go(data, tmp_path / "run", Probe(7, stop))
    what = "the sources" if kind == "sources" else "the labels, or the rows,"
    with pytest.raises(DataError, match=f"{what} of the data have changed since"):
        go(OTHERS[kind](data), tmp_path / "run", resume=True)


def earlier_identity(data: Data) -> dict[str, str]:
    """As versions that knew labels with their sources alone noted it."""
    found = identity_of(data)
    return {"labels": found["sources"], "inputs": found["inputs"]}


@pytest.mark.parametrize("sources", [False, True])
def test_a_checkpoint_that_knows_sources_by_the_labels(
    sources: bool, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = OTHERS["sources"](data) if sources else data
    with monkeypatch.context() as earlier:
        earlier.setattr("deepteach.training.run.identity_of", earlier_identity)
        go(begun, tmp_path / "run", epochs=1)
    go(begun, tmp_path / "run", resume=True, epochs=1)
    other = data if sources else OTHERS["sources"](data)
    told = "the labels, rows or sources" if sources else "the column group .* rename it to go on"
    with pytest.raises(DataError, match=told):
        go(other, tmp_path / "run", resume=True, epochs=1)
    moved_too = OTHERS["labels"](other)
    with pytest.raises(DataError, match="the labels, rows or sources of the data have changed"):
        go(moved_too, tmp_path / "run", resume=True, epochs=1)


@pytest.mark.parametrize("part", ["x_train", "x_valid", "x_test"])
def test_other_inputs_are_told(part: str, data: Data, tmp_path: Path) -> None:
    """They may be of an image that another version of a library decodes to other bits."""
    with pytest.raises(Interrupted):
        go(data, tmp_path / "run", Probe(7, stop))
    probe = Probe()
    go(replace(data, **{part: getattr(data, part) + 1e-3}), tmp_path / "run", probe, resume=True)
    assert "not bit-reproducible: the inputs changed since the checkpoint" in probe.said


CHANGED: dict[str, Any] = {
    "scaled": lambda x: 3 * x,
    "in another order": lambda x: x.flip(0),
    "one row": lambda x: x + 3 * (torch.arange(len(x)) == 7).to(x).view(-1, *(1,) * (x.dim() - 1)),
}


@pytest.mark.parametrize("part", ["x_train", "x_valid", "x_test"])
@pytest.mark.parametrize("kind", CHANGED)
def test_other_inputs_are_refused(kind: str, part: str, data: Data, tmp_path: Path) -> None:
    out, other = tmp_path / "run", replace(data, **{part: CHANGED[kind](getattr(data, part))})
    go(data, out, epochs=1)
    with pytest.raises(DataError, match=f"the inputs {part} have changed since"):
        go(other, out, resume=True, epochs=1)


def test_a_checkpoint_without_a_sketch_is_gone_on_with(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of earlier versions."""
    with monkeypatch.context() as earlier:
        earlier.setattr("deepteach.training.run.sketch_of", lambda data: {})
        go(data, tmp_path / "run", epochs=1)
    other = replace(data, x_train=3 * torch.as_tensor(data.x_train))
    go(other, tmp_path / "run", Probe(), resume=True, epochs=1)


def test_python_is_warned_where_nobody_watches(data: Data, tmp_path: Path) -> None:
    out = tmp_path / "run"
    parts = (data.x_train, data.y_train), (data.x_valid, data.y_valid)
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 16, "baseline": False, "out": out}
    dt.train("mlp", *parts, **settings)
    newest = max((out / "checkpoints").iterdir())
    (newest / "state.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged checkpoint passed over"):
        dt.train("mlp", *parts, resume=True, **settings)


def test_only_what_is_the_same_is_known_as_the_same(data: Data) -> None:
    own = identity_of(data)
    assert own == identity_of(replace(data, y_train=data.y_train.clone()))
    found = {kind: identity_of(other(data)) for kind, other in OTHERS.items()}
    assert len({one["sources"] for one in (own, *found.values())}) == len(OTHERS) + 1
    assert own["labels"] == own["sources"] == found["sources"]["labels"]
    assert {one["inputs"] for one in found.values()} == {own["inputs"]}


def test_a_file_is_known_by_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepteach.data.identity._BLOCK", 4)
    monkeypatch.setattr("deepteach.data.identity._ROWS", 3)
    path = tmp_path / "a.csv"
    path.write_bytes(b"x" * 40)
    first = file_of(f"csv:{path}")
    assert first == file_of(f"npz:{path}")
    for other in (b"y" + b"x" * 39, b"x" * 13 + b"y" + b"x" * 26, b"x" * 39 + b"y", b"x" * 41):
        path.write_bytes(other)
        assert file_of(f"csv:{path}") not in (first, None)
    for none in ("arrays", "digits", f"folder:{tmp_path}", "csv:none.csv", "mine:data"):
        assert file_of(none) is None
