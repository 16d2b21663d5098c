"""weights.csv, groups.csv and samples.safetensors name a sample as the user does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from deepteach.data.dataset import Data, from_arrays
from deepteach.report.export import ranked
from deepteach.runs.weights import GroupWeight, read_groups, read_weights
from deepteach.training.evaluate import Trust
from deepteach.training.sample_files import groups_csv, sample_weights, samples, weights_csv
from deepteach.training.weight_history import WeightHistory

N = 12


def made(*, named: bool) -> tuple[Data, Trust]:
    """Twelve samples in no order of their rows, of three sources; the weights are i / 6."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((N, 4)), np.arange(N) % 3
    more = {"rows_train": 500 - 7 * np.arange(N), "group_train": list("abcabcabcaaa")}
    valid = rng.standard_normal((12, 4)), np.arange(12) % 3
    data = from_arrays(x, y, *valid, y_clean=(y + (y == 2)) % 3, **(more if named else {}))
    predicted = (torch.arange(N) + (torch.arange(N) % 2)) % 3
    weight = torch.arange(N) / 6
    return data, Trust(weight, weight + 1, predicted, torch.eye(N), data.rows)


def test_rows_groups_and_suggestions(tmp_path: Path) -> None:
    data, trust = made(named=True)
    (tmp_path / "weights.csv").write_bytes(weights_csv(sample_weights(data, trust)))
    heads = (tmp_path / "weights.csv").read_text().splitlines()[0]
    assert heads == (
        "index,given_label,predicted_label,suggested_label,weight,loss,group,true_label"
    )
    found = read_weights(tmp_path / "weights.csv")
    assert found.index.tolist() == sorted(data.rows.tolist())
    assert found.weight.tolist() == pytest.approx(trust.weight.flip(0).tolist(), rel=1e-5)
    assert found.group is not None and "".join(found.group) == "aaacbacbacba"
    assert found.path is None
    for given, predicted, suggested, weight in zip(
        found.given, found.predicted, found.suggested, found.weight, strict=True
    ):
        assert suggested == (predicted if weight < 1 else given)
    assert (found.suggested != found.given).sum() == 3  # odd samples below the weight 1

    content = groups_csv(data, trust)
    assert content is not None
    (tmp_path / "groups.csv").write_bytes(content)
    groups = read_groups(tmp_path / "groups.csv")
    assert [group.samples for group in groups] == [6, 3, 3]
    for group in groups:
        own = found.weight[found.group == group.group]
        assert group.mean_weight == pytest.approx(own.mean(), rel=1e-4)

    table = ranked(found, 2).columns
    assert list(table)[:4] == ["rank", "index", "given_label", "predicted_label"]
    assert table["index"] == [500, 493] and table["group"] == ["a", "b"]


def test_what_is_shown_is_found_by_row() -> None:
    data, trust = made(named=True)
    history = WeightHistory()
    for weights in (trust.weight, 2 * trust.weight):
        history.append(weights)
    kept = load(samples(data, trust, history))
    assert kept["suspect_index"].tolist() == data.rows.tolist()  # the lightest first
    assert kept["internal_index"].tolist() == data.rows.tolist()
    assert kept["history"][0].tolist() == trust.weight.half().flip(0).tolist()  # by index


def test_of_large_samples_fewer_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    data, trust = made(named=False)
    history = WeightHistory()
    history.append(trust.weight)
    each = 4 * data.x_train[0].numel()
    limits = {"SUSPECTS_SHOWN": 9, "FEWEST_SHOWN": 2}
    for name, value in limits.items():
        monkeypatch.setattr(f"deepteach.training.sample_files.{name}", value)
    for size, count in ((5 * each, 5), (100 * each, 9), (each, 2)):
        monkeypatch.setattr("deepteach.training.sample_files.SHOWN_BYTES", size)
        assert len(load(samples(data, trust, history))["suspects"]) == count


def test_samples_without_sources() -> None:
    data, trust = made(named=False)
    assert groups_csv(data, trust) is None
    lines = weights_csv(sample_weights(data, trust)).decode().splitlines()
    assert "group" not in lines[0] and [line.split(",")[0] for line in lines[1:]] == [
        str(i) for i in range(N)
    ]


def test_no_groups_file_is_no_groups(tmp_path: Path) -> None:
    assert read_groups(tmp_path / "groups.csv") == ()
    (tmp_path / "groups.csv").write_text("group,samples,mean_weight\nx,3,0.5\n")
    assert read_groups(tmp_path / "groups.csv") == (GroupWeight("x", 3, 0.5),)
