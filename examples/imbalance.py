"""Imbalance: a long tail of digits, judged on a test set in which all classes count alike."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score

import deepteach as dt

x, y = load_digits(return_X_y=True)
x, draws = (x / 16).astype("float32"), np.random.default_rng(0)
train, valid, test = np.split(draws.permutation(len(y)), [1200, 1400])

kept = [train[y[train] == c][: int(100 * 0.6**c) + 1] for c in range(10)]  # 101, 61, ... 2
tail = np.concatenate(kept)


def recall(method: str) -> float:
    """Mean accuracy over the classes."""
    result = dt.train(
        "mlp",
        (x[tail], y[tail]),
        (x[valid], y[valid]),  # as the model will be used: all classes about equally often
        teacher=method,
        epochs=40,
        batch_size=32,
        baseline=False,
    )
    return float(balanced_accuracy_score(y[test], result.predict(x[test])))


found = {method: recall(method) for method in ("uniform", "class-balanced", "merged", "deep")}
for method, value in found.items():
    print(f"{method:15} balanced accuracy {value:.3f}")
