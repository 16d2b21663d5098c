"""Several sources: four annotators, one of whom guesses half of the labels."""

import numpy as np
from sklearn.datasets import load_digits

import deepteach as dt

x, y = load_digits(return_X_y=True)
x, draws = (x / 16).astype("float32"), np.random.default_rng(0)
train, valid, test = np.split(draws.permutation(len(y)), [1000, 1200])

who = np.array(["ada", "ben", "cid", "dot"])[draws.integers(4, size=len(train))]
guessed = (who == "dot") & (draws.random(len(train)) < 0.5)
given = np.where(guessed, draws.integers(10, size=len(train)), y[train])

result = dt.train(
    "mlp",
    (x[train], given, who),  # the third item names the source of each sample
    (x[valid], y[valid]),
    (x[test], y[test]),
    epochs=15,
    out="runs/sources",
)

frame = result.to_frame()
trust = frame.groupby("group")["weight"].mean()
print(trust.round(2).to_string())  # also in runs/sources/groups.csv
print(f"test accuracy: {result.summary['test_accuracy_last']:.3f}")
