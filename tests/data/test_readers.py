"""A name finds its data: digits, archives, and what is no name."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import refused, rng, same, table
from sklearn.datasets import load_digits

from deepteach.data.dataset import from_arrays
from deepteach.data.readers import load
from deepteach.errors import ConfigError, DataError

torch.set_num_threads(1)


def test_digits_are_all_there_once() -> None:
    data = load("digits", seed=0)
    assert (len(data.y_train), len(data.y_valid)) == (1197, 200)
    assert data.x_test is not None and data.x_test.shape == (400, 1, 8, 8)
    assert data.classes == 10 and data.name == "digits" and data.notes == ()
    parts = torch.cat([data.x_train[:], data.x_valid[:], data.x_test[:]])[:, 0]
    shown = (parts * data.scale + data.mean).round().flatten(1).numpy()
    expected = np.asarray(load_digits().data)  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(map(tuple, shown.tolist())) == sorted(map(tuple, expected.tolist()))
    assert np.bincount(data.y_valid).min() >= 19
    assert same(data, load("digits", seed=0)) and not same(data, load("digits", seed=1))
    assert len(load("digits", seed=0, valid_size=50).y_valid) == 50


def test_npz_equals_its_arrays(tmp_path: Path) -> None:
    arrays = table()
    extra = {"x_test": arrays["x_valid"], "y_test": arrays["y_valid"]}
    np.savez(tmp_path / "a.npz", **arrays, **extra, y_train_clean=arrays["y_train"], word=1)
    data = load(f"npz:{tmp_path}/a.npz", seed=0)
    assert same(data, from_arrays(**arrays, **extra, y_clean=arrays["y_train"]))
    assert data.name == f"npz:{tmp_path}/a.npz"
    assert data.notes == ("array 'word' of a.npz is not used",)


def test_npz_without_validation_tells(tmp_path: Path) -> None:
    arrays = table()
    np.savez_compressed(tmp_path / "a.npz", x_train=arrays["x_train"], y_train=arrays["y_train"])
    data = load(f"npz:{tmp_path}/a.npz", seed=3)
    assert same(data, from_arrays(arrays["x_train"], arrays["y_train"], seed=3))
    assert "no x_valid: 12 of 120" in data.notes[0]


class Canary:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_npz_with_objects_is_not_unpickled(tmp_path: Path) -> None:
    arrays = table()
    arrays["x_train"] = np.array([Canary(tmp_path / "hatched")] * 120, object)
    np.savez(tmp_path / "a.npz", **arrays)
    refused(lambda: load(f"npz:{tmp_path}/a.npz", 0), "without pickle")
    assert not (tmp_path / "hatched").exists()


def test_damaged_npz_is_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, **table())
    raw = whole.read_bytes()
    for size in range(0, len(raw), len(raw) // 25):
        (tmp_path / "cut.npz").write_bytes(raw[:size])
        refused(lambda: load(f"npz:{tmp_path}/cut.npz", 0), "cut.npz cannot be read as npz")
    for place in rng().integers(len(raw), size=60):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << rng(int(place)).integers(8)
        (tmp_path / "bad.npz").write_bytes(flipped)
        try:
            data = load(f"npz:{tmp_path}/bad.npz", 0)
        except DataError as error:
            assert "\n" not in str(error) and "bad.npz" in str(error)
        else:  # the bit is one that zip does not use: then the arrays are whole
            assert same(data, load(f"npz:{whole}", 0))


def test_huge_declared_array_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 2), }"
    header = header.ljust(117) + b"\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train.npy", start + header)
    refused(lambda: load(f"npz:{tmp_path}/a.npz", 0), "cannot be read as npz")


def test_other_npz_mistakes_are_one_line(tmp_path: Path) -> None:
    arrays, path = table(), tmp_path / "a.npz"

    def saved(**changed: Any) -> str:
        np.savez(path, **{k: v for k, v in {**arrays, **changed}.items() if v is not None})
        return f"npz:{path}"

    refused(lambda: load(f"npz:{tmp_path}/none.npz", 0), "none.npz does not exist")
    refused(lambda: load(f"npz:{tmp_path}", 0), "cannot be read as npz")
    refused(lambda: load(saved(y_train=None), 0), "no array 'y_train': found x_train")
    refused(lambda: load(saved(y_train=np.arange(9)), 0), "a.npz: x_train has 120 rows but")
    misspelt = {"x_valid": None, "x_val": arrays["x_valid"]}
    refused(lambda: load(saved(**misspelt), 0), "unknown array 'x_val'")
    refused(lambda: load(saved(**misspelt), 0), "did you mean 'x_valid'?")
    np.save(tmp_path / "b.npy", arrays["x_train"])
    refused(
        lambda: load(f"npz:{tmp_path}/b.npy", 0),
        "b.npy is not an npz archive: write it with numpy.savez",
    )


def test_unknown_sources() -> None:
    refused(lambda: load("nzp:a", 0), "did you mean 'npz'?", ConfigError)
    refused(lambda: load("digit", 0), "did you mean 'digits'?", ConfigError)
    refused(lambda: load("digits:a", 0), "expected digits, npz:PATH", ConfigError)
    refused(lambda: load("npz:", 0), "names no path: expected npz:PATH", ConfigError)


def test_messages_hold_no_path_twice(tmp_path: Path) -> None:
    arrays = table()
    np.savez(tmp_path / "a.npz", **{**arrays, "y_valid": np.ones(30, int)})
    with pytest.raises(DataError) as caught:
        load(f"npz:{tmp_path}/a.npz", 0)
    assert len(re.findall(r"a\.npz", str(caught.value))) == 1


OWN = """
import numpy as np
from deepteach import DataError
from deepteach.data.dataset import from_arrays

def arrays(seed=0, n=120):
    x = np.random.default_rng(seed).normal(size=(n, 3))
    return {"x_train": x, "y_train": np.arange(n) % 3, "group_train": np.arange(n) % 5}

def finished(valid_size):
    return from_arrays(np.arange(240.).reshape(120, 2), np.arange(120) % 2, valid_size=valid_size)

def misspelt():
    return {"x_train": [[0.]], "y_trian": [0]}

def empty():
    return {"x_train": [[0.]]}

def wrong():
    return 3

def wild():
    return {**arrays(), "y_train": np.full(120, 1)}

def refusing():
    raise DataError("the server is away: try later")

def raising():
    raise OSError("a\\nb")

class Held:
    @staticmethod
    def inside(seed):
        return arrays(seed)
"""


def test_a_function_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_data.py").write_text(OWN)
    (tmp_path / "my_broken_data.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = load("my_data:arrays", seed=4, valid_size=30)
    x = rng(4).normal(size=(120, 3))
    y, groups = np.arange(120) % 3, np.arange(120) % 5
    assert same(data, from_arrays(x, y, seed=4, valid_size=30)) and data.group is not None
    assert data.group.tolist() == groups[data.rows.numpy()].tolist()
    assert data.name == "my_data:arrays"
    assert len(load("my_data:finished", seed=0, valid_size=20).y_valid) == 20
    assert same(load("my_data:Held.inside", 4, 30), data)
    for name, words, kind in (
        ("misspelt", "unknown 'y_trian', did you mean 'y_train'?", ConfigError),
        ("empty", "returned no y_train", ConfigError),
        ("wrong", "returned type int: expected a Data, or a mapping", ConfigError),
        ("wild", "my_data:wild: y_train holds class 1 only", DataError),
        ("refusing", "the server is away: try later", DataError),
        ("raising", "failed (OSError: a b)", ConfigError),
        ("nothing", "cannot be imported (AttributeError", ConfigError),
        ("OWN.x", "cannot be imported", ConfigError),
    ):
        refused(lambda name=name: load(f"my_data:{name}", 0), words, kind)
    refused(lambda: load("my_broken_data:f", 0), "No module named 'nowhere_at_all'", ConfigError)
    refused(lambda: load("my_dta:arrays", 0), "package.module:function", ConfigError)
    refused(lambda: load("my_data:finished", 0, 20, group="a"), "names a column", ConfigError)


def test_groups_from_files(tmp_path: Path) -> None:
    arrays = table()
    np.savez(tmp_path / "a.npz", **arrays, group_train=np.arange(120) // 40)
    group = load(f"npz:{tmp_path}/a.npz", seed=0).group
    assert group is not None and group.tolist() == (np.arange(120) // 40).tolist()
    for odd in ("", "é"):
        names = np.char.encode([f"{odd}a{i // 40}" for i in range(120)], "utf-8")
        np.savez(tmp_path / "a.npz", **arrays, group_train=names)
        data = load(f"npz:{tmp_path}/a.npz", seed=0)
        assert data.group_names == tuple(f"{odd}a{i}" for i in range(3))
    split = ("train", "valid", "train", "test")
    rows = "".join(f"{i},{i * i},s{i % 5},{split[i % 4]},{i // 4 % 2}\n" for i in range(120))
    (tmp_path / "a.csv").write_text("a,b,source,split,label\n" + rows)
    data = load(f"csv:{tmp_path}/a.csv", seed=0, group="source")
    assert data.input_shape == (2,) and data.rows_valid is not None and data.group is not None
    assert data.rows.tolist() == list(range(0, 120, 2))
    assert data.rows_valid.tolist() == list(range(1, 120, 4))
    assert data.group.tolist() == [i % 5 for i in data.rows.tolist()]
    assert data.group_names == ("s0", "s1", "s2", "s3", "s4")
    refused(lambda: load(f"csv:{tmp_path}/a.csv", 0, group="sorce"), "did you mean 'source'?")
    refused(lambda: load("digits", 0, group="source"), "group_train of an npz", ConfigError)
