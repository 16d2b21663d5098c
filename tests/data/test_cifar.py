"""CIFAR's binary files become arrays, or one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import refused, rng, same

from deepteach.data.dataset import Data, from_arrays
from deepteach.data.images.cifar import cifar
from deepteach.data.readers import load

torch.set_num_threads(1)


def cifar_files(root: Path, classes: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR's binary files with random pixels; all images and labels, the test's last."""
    root.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    names = names if classes == 10 else ["train.bin", "test.bin"]
    x = rng().integers(256, size=(len(names) * count, 3, 32, 32), dtype=np.uint8)
    y = (np.arange(len(x)) % 10).astype(np.uint8) * (classes // 10)
    for i, name in enumerate(names):
        with open(root / name, "wb") as file:
            for image, label in zip(
                x[i * count : (i + 1) * count], y[i * count : (i + 1) * count], strict=True
            ):
                file.write(bytes([19, label] if classes == 100 else [label]))
                for channel in image:
                    file.write(channel.tobytes())
    return x, y


def test_cifar10_binary(tmp_path: Path) -> None:
    x, y = cifar_files(tmp_path, 10)
    data = load(f"cifar10:{tmp_path}", seed=0, valid_size=100)
    assert same(data, from_arrays(
        x[:300], y[:300], x_test=x[300:], y_test=y[300:], valid_size=100, classes=10
    ))  # fmt: skip
    assert np.bincount(data.y_valid).tolist() == [10] * 10
    assert len(load(f"cifar10:{tmp_path}", seed=0).y_valid) == 30
    cifar_files(tmp_path / "b" / "cifar-10-batches-bin", 10)
    assert same(data, load(f"cifar10:{tmp_path}/b", seed=0, valid_size=100))


def test_cifar100_binary_takes_the_fine_label(tmp_path: Path) -> None:
    x, y = cifar_files(tmp_path, 100)
    images, labels = cifar(tmp_path, 100)[0]["x_train"], y[:60]
    assert (images == x[:60]).all()
    with pytest.warns(UserWarning, match="only 20 validation samples for 100 classes"):
        data = load(f"cifar100:{tmp_path}", seed=0)
    assert data.classes == 100
    assert set(data.y_train.tolist()) == set(labels.tolist()) == set(range(0, 100, 10))


def test_bad_cifar_files_are_one_line(tmp_path: Path) -> None:
    def read() -> Data:
        return load(f"cifar10:{tmp_path}", 0)

    refused(read, "data_batch_1.bin cannot be read (No such file or directory): expected")
    (tmp_path / "data_batch_1").touch()
    refused(read, "this is the pickled 'python version'")
    cifar_files(tmp_path, 10)
    third = tmp_path / "data_batch_3.bin"
    raw = third.read_bytes()
    third.write_bytes(raw[:-1])
    refused(read, f"data_batch_3.bin has {len(raw) - 1} bytes, not a multiple of the 3073")
    third.write_bytes(b"")
    refused(read, "data_batch_3.bin has 0 bytes")
    third.write_bytes(raw[: 3073 * 2] + b"\x0a" + raw[3073 * 2 + 1 :])
    refused(read, "data_batch_3.bin has label 10 in record 2, outside 0..9")
