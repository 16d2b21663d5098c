"""Wrong labels: digits of which 40 % carry a similar class's label, and 200 that are trusted."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import deepteach as dt
from deepteach.data.noise import flip

x, y = load_digits(return_X_y=True)
x, order = (x / 16).astype("float32"), np.random.default_rng(0).permutation(len(y))
train, valid, test = np.split(order, [1000, 1200])

given, wrong = flip(y[train], 0.4, classes=10, generator=np.random.default_rng(1))

result = dt.train(
    "mlp",
    (x[train], given),  # what you have: many labels, some of them wrong
    (x[valid], y[valid]),  # what you trust; it steers the teacher
    (x[test], y[test]),  # only measures
    y_clean=y[train],  # only measures; leave it out where the truth is unknown
    epochs=15,
    out="runs/wrong_labels",
)

plain = result.beside["uniform"]["test_accuracy_last"]
print(f"test accuracy: taught {result.summary['test_accuracy_last']:.3f}, plain {plain:.3f}")
print(f"AUROC of wrong labels: {result.summary['noise_auroc']:.3f}")
print(Path(result.path, "weights.csv").read_text().splitlines()[0])
